"""SmolLM2 quantized by other packages, measured like ours: their weights, decoded, as a float folder.

Needs `pip install hqq` and `pip install auto-round` in the environment. Their packed sizes are counted from what they
keep: codes, and 16-bit scales and zeros a group of 64. Finished rows are kept in FOLDER/results.json. Run:

    python benchmarks/peers.py CALIBRATION.jsonl.gz WIKITEXT.raw FOLDER PEER:BITS ...

PEER:BITS is hqq:4 or auto-round:2, say.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command import bitwright

from bitwright.calibrate import tokens
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.runtime.load import load_float

MODEL = "smollm2"
GROUP = 64
WINDOWS = 10
SEQUENCES, LENGTH = 32, 512  # of calibration, for peers that calibrate
ITERATIONS = 50  # of auto-round, whose default is 200


def hqq(model: Any, bits: int, calibration: Path) -> Any:
    """Half-quadratic quantization of every block linear; no calibration."""
    from hqq.core.quantize import Quantizer

    for block in infer(model).blocks:
        for name in block.linears:
            linear = model.get_submodule(f"{block.path}.{name}")
            w = linear.weight.data.float()
            packed, meta = Quantizer.quantize(
                w, nbits=bits, group_size=GROUP, axis=1, device="cpu", compute_dtype=torch.float32
            )
            linear.weight.data = Quantizer.dequantize(packed, meta).to(w.dtype)
    return model


def auto_round(model: Any, bits: int, calibration: Path) -> Any:
    """Rounding learned by signed gradients, block by block."""
    from auto_round import AutoRound

    tokenizer = open_source(MODEL).tokenizer()
    ids = tokens.windows(tokenizer, tokens.read_text(calibration), LENGTH, SEQUENCES, 0)
    loader = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    rounder = AutoRound(
        model,
        tokenizer,
        bits=bits,
        group_size=GROUP,
        sym=False,
        dataset=loader,
        iters=ITERATIONS,
        seqlen=LENGTH,
        nsamples=SEQUENCES,
        batch_size=4,
        device_map="cpu",
        enable_torch_compile=False,
    )
    quantized, _ = rounder.quantize()
    return quantized


PEERS: dict[str, Callable[[Any, int, Path], Any]] = {"hqq": hqq, "auto-round": auto_round}


def row(peer: str, bits: int, calibration: Path, text: Path, folder: Path) -> dict[str, Any]:
    """One model made and measured."""
    out = folder / f"{peer}-{bits}"
    start = time.monotonic()
    model = PEERS[peer](load_float(MODEL).float(), bits, calibration)
    seconds = time.monotonic() - start
    model.save_pretrained(out)
    open_source(MODEL).save_companions(out)
    measured = bitwright("evaluate", out, "--text", text, "--windows", WINDOWS, "--against", MODEL)
    return {"seconds": seconds, "bits": bits + 32 / GROUP, "measured": measured}


def main(calibration: str, text: str, folder: str, *wanted: str) -> None:
    """All rows that are not there yet, with a line for each."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    results = place / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in wanted:
        peer, bits = name.split(":")
        if name not in found:
            found[name] = row(peer, int(bits), Path(calibration), Path(text), place)
            results.write_text(json.dumps(found, indent=1))
        r = found[name]
        perplexity = r["measured"]["perplexity"]
        print(f"{name}: {r['bits']} bits, perplexity {perplexity:.2f}, {r['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
