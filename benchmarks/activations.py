"""What int8 activations cost: packed models with int8 and with float activations on the same windows.

python benchmarks/activations.py TEXT FOLDER [FOLDER ...] [--windows 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bitwright.artifact.read import open_artifact
from bitwright.evaluate.metrics import perplexity_difference
from bitwright.evaluate.protocol import load_text, prepare
from bitwright.evaluate.run import evaluate
from bitwright.models.folder import read_tokenizer
from bitwright.runtime.generate import open_generator


def compare(folder: Path, text: Path, windows: int) -> dict[str, Any]:
    artifact = open_artifact(folder)
    protocol, chosen = prepare(read_tokenizer(folder), load_text(text), limit=windows)
    int8, exact = (open_generator(artifact, kind).module for kind in ("int8", "float"))
    found = evaluate(int8, chosen, protocol, reference=exact)
    assert found.reference is not None
    assert found.divergence is not None
    difference, error = perplexity_difference(found.nll_by_window, found.reference.nll_by_window)
    return {
        "model": folder.name,
        "int8": found.totals.perplexity,
        "float": found.reference.totals.perplexity,
        "difference": difference,
        "error": error or 0.0,
        "kl": found.divergence.kl_mean,
        "seconds": [found.seconds, found.reference.seconds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| model | float | int8 | int8 costs | KL | seconds, float / int8 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for folder in options.folders:
        row = compare(folder, options.text, options.windows)
        rows.append(row)
        cost, error = (100 * row[name] / row["float"] for name in ("difference", "error"))
        of_int8, of_float = row["seconds"]
        print(f"| {row['model']} | {row['float']:.3f} | {row['int8']:.3f} ", end="")
        print(f"| {cost:+.2f} ± {error:.2f} % | {row['kl']:.5f} | {of_float:.0f} / {of_int8:.0f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
