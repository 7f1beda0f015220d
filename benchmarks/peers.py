"""SmolLM2 quantized by other packages, measured like ours: their weights, decoded, as a float folder.

Needs `pip install hqq`, `auto-round` or `gptqmodel` in the environment. Their packed sizes are counted from what they
keep: codes, and 16-bit scales and zeros a group of 64. Finished rows are kept in FOLDER/results.json. Run:

    python benchmarks/peers.py CALIBRATION.jsonl.gz WIKITEXT.raw FOLDER PEER:BITS ...

PEER:BITS is hqq:4, auto-round:2 or gptqmodel:3, say.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from command import bitwright

from bitwright.calibrate import tokens
from bitwright.models.skeleton import skeleton
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

    for block in infer(skeleton(model.config)).blocks:
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


def gptqmodel(model: Any, bits: int, calibration: Path) -> Any:
    """GPTQ, saved packed and read back."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    source = open_source(MODEL)
    ids = tokens.windows(source.tokenizer(), tokens.read_text(calibration), LENGTH, SEQUENCES, 0)
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    with TemporaryDirectory() as place:
        plain, packed = f"{place}/float", f"{place}/packed"
        model.save_pretrained(plain)
        source.save_companions(Path(plain))
        maker = GPTQModel.load(plain, QuantizeConfig(bits=bits, group_size=GROUP, device="cpu"))
        maker.quantize(rows, batch_size=1, backend=BACKEND.TORCH)
        maker.save(packed)
        found = GPTQModel.load(packed, backend=BACKEND.TORCH, device="cpu")
        for name, module in found.model.named_modules():
            if hasattr(module, "dequantize_weight"):
                linear = model.get_submodule(name)
                linear.weight.data = module.dequantize_weight().t().to(linear.weight.dtype).contiguous()
    return model


PEERS: dict[str, Callable[[Any, int, Path], Any]] = {"hqq": hqq, "auto-round": auto_round, "gptqmodel": gptqmodel}


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
