"""What transforms and the reconstruction of blocks bring at equal stored bits, on one model.

Every row is one `bitwright quantize`, measured against the float model on windows of a text. Finished rows are kept in
FOLDER and not made again. Run:

    python benchmarks/transforms.py MODEL CALIBRATION TEXT WINDOWS FOLDER [ROW ...]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from command import bitwright

TOKENS = 10240
AWQ, HADAMARD = 'transforms=[{"kind":"awq"}]', 'transforms=[{"kind":"hadamard"}]'
LEARNED = 'refiner={"kind":"reconstruct"}'
PLAIN, UNCLIPPED = "transforms=[]", "format.search=0"
THREE, LONG = "format.bits_per_code=3", "format.group=128"
TWO = "format.bits_per_code=2"
ALONE = "drift=0"  # weights do not make up for what inputs have lost
ROTATED = 'format={"kind":"rotated","inner":{"kind":"integer","bits_per_code":%d,"group":%d,"search":20}}'
WORDS_OF_20 = 'format={"kind":"rotated","inner":{"kind":"trellis","per_word":20}}'
ROWS: dict[str, tuple[str, ...]] = {  # recipe and its settings
    "4 bits, rounding": ("rtn", LONG),
    "4 bits, rounding, clipped": ("awq", PLAIN),
    "4 bits, rounding, AWQ": ("awq", UNCLIPPED),
    "4 bits, rounding, AWQ, clipped": ("awq",),
    "3 bits, rounding": ("rtn", THREE, LONG),
    "3 bits, rounding, clipped": ("awq", THREE, PLAIN),
    "3 bits, rounding, AWQ": ("awq", THREE, UNCLIPPED),
    "3 bits, rounding, AWQ, clipped": ("awq", THREE),
    "3 bits, rounding, Hadamard": ("rtn", THREE, LONG, HADAMARD),
    "3 bits, GPTQ": ("gptq", ALONE, LONG),
    "3 bits, GPTQ, AWQ": ("gptq", ALONE, LONG, AWQ),
    "3 bits, GPTQ, Hadamard": ("gptq", ALONE, LONG, HADAMARD),
    "3 bits, GPTQ, rotated inputs": ("gptq", ALONE, ROTATED % (3, 128)),
    "3 bits, OmniQuant": ("omniquant", LONG),
    "3 bits, AutoRound": ("autoround", LONG),
    "3 bits, GPTQ, learned": ("gptq", ALONE, LONG, LEARNED),
    "2 bits, GPTQ": ("gptq", ALONE, TWO),
    "3 bits, GPTQ, drift": ("gptq", LONG),
    "2 bits, GPTQ, drift": ("gptq", TWO),
    "2 bits, GPTQ, rotated inputs": ("gptq", ALONE, ROTATED % (2, 64)),
    "2 bits, OmniQuant": ("omniquant", TWO),
    "2 bits, AutoRound": ("autoround", TWO),
    "2 bits, GPTQ, learned": ("gptq", ALONE, TWO, LEARNED),
    "2 bits, trellis": ("trellis",),
    "2 bits, trellis, Hadamard": ("trellis", HADAMARD),
    "2 bits, trellis, rotated inputs": ("qtip",),
    "3.2 bits, trellis": ("trellis", "format.per_word=20"),
    "3 bits, GPTQ, group 64, rotated inputs": ("gptq", ALONE, ROTATED % (3, 64)),
    **{
        f"{name}{part}": (recipe, *words, *settings)
        for name, words in (("2 bits, parts: ", ()), ("3.2 bits, parts: ", (WORDS_OF_20,)))
        for part, recipe, settings in (
            ("all", "qtip", ()),
            ("without drift", "qtip", ("drift=0",)),
            ("without descent", "qtip", ('solver={"kind":"gptq","damping":0.1}',)),
            ("without drift and propagation", "qtip", ("drift=0", "propagate=false")),
        )
    },
    "2 bits, trellis, learned": ("trellis", LEARNED),
    "8 bits, a scale a row": ("smoothquant", PLAIN),
    "8 bits, a scale a row, SmoothQuant": ("smoothquant",),
}


def main(model: str, calibration: str, text: str, windows: str, folder: str, *wanted: str) -> None:
    """Make and measure the rows that are missing; print the table."""
    kept = Path(folder)
    kept.mkdir(parents=True, exist_ok=True)
    print("| | stored bits | perplexity | KL |\n| --- | ---: | ---: | ---: |")
    for name in wanted or ROWS:
        result = kept / f"{name}.json"
        if not result.exists():
            recipe, *settings = ROWS[name]
            out = kept / "artifact"
            shutil.rmtree(out, ignore_errors=True)
            words = [word for setting in settings for word in ("--set", setting)]
            bitwright(
                "quantize", model, "--recipe", recipe, *words, "--data", calibration, "--tokens", TOKENS, "-o", out
            )
            told = bitwright("evaluate", out, "--text", text, "--windows", windows)
            result.write_text(json.dumps(told))
        row = json.loads(result.read_text())
        bits, perplexity, divergence = row["stored_bits_per_weight"], row["perplexity"], row["kl_mean"]
        print(f"| {name} | {bits:.2f} | {perplexity:.3f} | {divergence:.4f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
