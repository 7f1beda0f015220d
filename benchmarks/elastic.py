"""SmolLM2 as one BitStack file at many budgets: what is read, what memory it takes, how good it is.

First one process grows from the smallest budget to the largest and shrinks again: bytes are counted at the read calls,
memory is what the system says the process holds. Then all sizes read the same windows. What was found is kept in
elastic.json beside this script. Run:

    python benchmarks/elastic.py CALIBRATION.jsonl.gz WIKITEXT.raw FOLDER

Without arguments it prints the table of what was found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from command import bitwright
from memory import resident

from bitwright.cli.measure import measure
from bitwright.cli.output import progress
from bitwright.cli.subject import open_subject, parent_of
from bitwright.runtime.describe import loaded_bits
from bitwright.runtime.elastic import ElasticModel

RESULTS = Path(__file__).parent / "elastic.json"
MODEL, TOKENS, WINDOWS = "smollm2", 10240, 10
BITS = (1.1, 1.35, 1.6, 1.85, 2.1, 2.4, 2.7, 3.1, 3.6, 4.2)  # stored bits a weight in the blocks, at most
KEPT = ("stored_bits_per_weight", "perplexity", "perplexity_difference_se", "kl_mean")
MB = 1e6


def budgets(folder: str) -> list[int]:
    """Bytes of the longest beginning of at most each of `BITS`."""
    model = ElasticModel(folder)
    ends = [model.prefix.smallest, *(own.stop for own in model.prefix.steps)]
    found = []
    for bits in BITS:
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high + 1) // 2
            model.resize(ends[middle])
            low, high = (middle, high) if loaded_bits(model.prefix) <= bits else (low, middle - 1)
        found.append(ends[low])
    return sorted(set(found))


def walk(folder: str, sizes: list[int]) -> list[dict[str, Any]]:
    """Up and down through the sizes: bytes read at each, and memory above that of the process before the model."""
    reads = 0
    plain = os.preadv

    def counted(file: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal reads
        count = plain(file, buffers, offset)
        reads += count
        return count

    os.preadv = counted
    import bitwright.runtime.generate  # noqa: F401  (so that imports do not count as memory of the model)

    list(ElasticModel(folder, sizes[0]).generator().tokens([1, 2, 3], 2))
    before, reads = resident(), 0
    model = ElasticModel(folder, sizes[0])
    rows: list[dict[str, Any]] = []
    for size in [*sizes, *reversed(sizes[:-1])]:
        model.resize(size)
        list(model.generator().tokens([1, 2, 3], 16))
        if len(rows) < len(sizes):
            rows.append({"bytes": size, "read": reads, "held": resident() - before})
        else:
            next(row for row in rows if row["bytes"] == size)["held_after"] = resident() - before
    return rows


def quality(folder: str, sizes: list[int], text: Path) -> list[dict[str, Any]]:
    """Each size on the same windows, beside the float model."""
    subjects = [replace(open_subject(folder, budget=size), name=str(size)) for size in sizes]
    with progress() as step:
        found = measure(subjects, parent_of(subjects[0])[0], text, WINDOWS, step)
    told = [found[subject.name].to_json() for subject in subjects]
    return [{key: row[key] for key in KEPT} for row in told]


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| budget, MB | bits | perplexity | KL | read, MB | memory, MB | on the way back |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in found["rows"]:
        back = f"{r['held_after'] / MB:.1f}" if "held_after" in r else ""
        lines.append(
            f"| {r['bytes'] / MB:.2f} | {r['stored_bits_per_weight']:.3f} "
            f"| {r['perplexity']:,.1f} ± {r['perplexity_difference_se']:,.1f} | {r['kl_mean']:.3f} "
            f"| {r['read'] / MB:.2f} | {r['held'] / MB:.1f} | {back} |"
        )
    return "\n".join(lines)


def main(calibration: str, text: str, place: str) -> None:
    """Make the file if it is not there, measure it, keep what was found."""
    folder = Path(place) / "bit-stack"
    seconds = json.loads(RESULTS.read_text())["seconds"] if RESULTS.exists() else None
    if not folder.exists():
        start = time.monotonic()
        words = ["--recipe", "bit-stack", "--data", calibration, "--tokens", TOKENS]
        bitwright("quantize", MODEL, *words, "-o", folder)
        seconds = round(time.monotonic() - start)
    sizes = budgets(str(folder))
    command = [sys.executable, __file__, "walk", str(folder), json.dumps(sizes)]
    walked = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    rows = [w | q for w, q in zip(walked, quality(str(folder), sizes, Path(text)), strict=True)]
    RESULTS.write_text(json.dumps({"seconds": seconds, "day": date.today().isoformat(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["walk"]:
        print(json.dumps(walk(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        if sys.argv[1:]:
            main(*sys.argv[1:])
        print(table(json.loads(RESULTS.read_text())))
