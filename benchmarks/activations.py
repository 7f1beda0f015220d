"""What int8 activations cost: perplexity of packed models with int8 and with float activations, and seconds of a run.

python benchmarks/activations.py TEXT FOLDER [FOLDER ...] [--windows 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

from command import bitwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| model | stored bits | int8 | float | int8 costs | seconds, int8 | float |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for folder in options.folders:
        row: dict[str, Any] = {"model": folder.name}
        for kind in ("int8", "float"):
            start = perf_counter()
            limits = ("--windows", options.windows, "--activations", kind)
            told = bitwright("evaluate", folder, "--text", options.text, *limits)
            row[kind], row[f"{kind}_seconds"] = told["perplexity"], perf_counter() - start
            row["bits"] = told["stored_bits_per_weight"]
        rows.append(row)
        cost = row["int8"] / row["float"] - 1
        seconds = f"{row['int8_seconds']:.0f} | {row['float_seconds']:.0f}"
        print(
            f"| {row['model']} | {row['bits']:.2f} | {row['int8']:.3f} | {row['float']:.3f} | {cost:+.2%} | {seconds} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
