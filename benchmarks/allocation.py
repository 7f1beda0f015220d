"""SmolLM2 at equal file sizes: one format for all blocks against every score of the allocator.

Each row quantizes with the same solver (GPTQ) and calibration text, then measures perplexity and KL divergence.
Finished rows are kept in RESULTS and not done again. Run:

    python benchmarks/allocation.py CALIBRATION.jsonl.gz WIKITEXT.raw FOLDER [ROW ...]

ROW is SIZE:SCORE or SIZE:SCORE:RECIPE, 45:fisher or 45:fisher:trellis say; by default all of GPTQ.
`benchmarks/allocation_page.py` makes a page of RESULTS, FOLDER/results.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from command import bitwright

MODEL = "smollm2"
TOKENS = 8192
WINDOWS = 3
SIZES = (45, 55, 70, 38)  # MB of all weight files
SCORES = ("uniform", "fisher", "combined", "measured", "hessian", "baq", "trace", "weight")
RANKS = ("lim", "zd")  # whole blocks, through the recipe of that paper


def row(size: int, score: str, recipe: str, calibration: Path, text: Path, folder: Path) -> dict[str, Any]:
    """One model made and measured."""
    out = folder / f"{size}-{score}-{recipe}"
    asked = ["--recipe", recipe, "--score", score, "--target-size", f"{size}MB"]
    options = [MODEL, *asked, "--data", calibration, "--tokens", TOKENS]
    plan = bitwright("quantize", *options, "--dry-run", "--save-plan", f"{out}.plan.json")
    if not out.exists():
        bitwright("quantize", *options, "-o", out)
    measured = bitwright("evaluate", out, "--text", text, "--windows", WINDOWS)
    return {
        "size": size,
        "score": score,
        "recipe": recipe,
        "plan": plan["decision"],
        "bits": plan["bits"],
        "measured": measured,
    }


def main(calibration: str, text: str, folder: str, *wanted: str) -> None:
    """All rows that are not there yet, with a line for each."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    results = place / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in wanted or [f"{size}:{score}" for score in (*SCORES, *RANKS) for size in SIZES]:
        size, score, *rest = name.split(":")
        recipe = rest[0] if rest else "layerwise" if score in RANKS else "gptq"
        if name not in found:
            try:
                found[name] = row(int(size), score, recipe, Path(calibration), Path(text), place)
            except subprocess.CalledProcessError as error:
                print(f"{name}: command failed with exit code {error.returncode}", file=sys.stderr)
                continue
            results.write_text(json.dumps(found, indent=1))
        measured, told = found[name]["measured"], found[name]["plan"]
        print(
            f"{name}: {measured['file_bytes'] / 1e6:.1f} MB, perplexity {measured['perplexity']:.2f}, "
            f"KL {measured['kl_mean']:.3f}, predicted {told['loss']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
