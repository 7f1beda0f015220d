"""Opens a written artifact as a stranger would: a fresh process, the reader, the loader, the same logits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bitwright.artifact.layout import Manifest
from bitwright.artifact.plan import formats
from bitwright.artifact.read import load_block
from bitwright.artifact.write import Contents, predicted_bytes, save_block
from bitwright.errors import WorkFailed
from bitwright.runtime.load import assemble

PROMPT = 32  # tokens


def verified(folder: Path, contents: Contents, tensor: Callable[[str], Tensor], manifest: Manifest) -> Manifest:
    """Reopen a written folder in a fresh process; the manifest says what was compared with the tensors in memory."""
    model = assemble(
        contents.config, contents.quantization, formats(contents.quantization), tensor, tuple(contents.kept)
    )
    logits = fixed_logits(model, int(model.config.get_text_config().vocab_size))
    if not bool(logits.isfinite().all()):
        raise WorkFailed("the quantized model gives non-finite logits: its weights are damaged.")
    same_when_reopened(folder, logits)
    checked = {
        "logits": "equal in a fresh process",
        "prompt_tokens": PROMPT,
        "predicted_bytes": predicted_bytes(contents.shards()),
        "file_bytes": manifest.totals.file_bytes,
    }
    return manifest.model_copy(update={"verification": checked})


def fixed_logits(model: nn.Module, vocabulary: int) -> Tensor:
    """Float32 logits of a fixed prompt."""
    ids = torch.arange(1, PROMPT + 1).unsqueeze(0) * 7 % vocabulary
    with torch.inference_mode():
        logits: Tensor = model(ids, use_cache=False).logits
    return logits.float().contiguous()


def same_when_reopened(folder: Path, expected: Tensor) -> None:
    """`WorkFailed` unless a fresh process computes exactly these logits from the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "logits.safetensors"
        command = [
            sys.executable,
            "-m",
            "bitwright.engine.verify",
            str(folder),
            str(found),
            str(torch.get_num_threads()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise WorkFailed(f"the written artifact does not load in a fresh process: {done.stderr.strip()[-500:]}")
        logits = load_block(found)["logits"]
        if not torch.equal(logits, expected):
            worst = float((logits - expected).abs().max())
            raise WorkFailed(
                f"the written artifact gives other logits than the model in memory (by up to {worst:.3g})."
            )


def _main(folder: str, found: str, threads: str) -> None:
    from bitwright.runtime.load import load

    torch.set_num_threads(int(threads))
    model = load(folder)
    save_block(Path(found), {"logits": fixed_logits(model, int(model.config.get_text_config().vocab_size))})


if __name__ == "__main__":
    _main(*sys.argv[1:])
