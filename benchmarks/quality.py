"""Small models at 1.75 to 4.25 stored bits, and in files of 32 to 45 MB: what each part of the presets is worth, and
where they stand beside llama.cpp.

A row is a model made in two steps, as `quantize --quality` makes it: `quantize` with bits spread by measurement, then
`tune` for a number of steps (not of minutes, so that a busy machine gives the same model). It is measured on windows
1-10 of WikiText-2 and on the last documents of C4, which nothing was calibrated or tuned on. Finished models and rows
are kept in FOLDER and not made again, so other texts or another version want another one; the table is written after
each row. Run:

    python benchmarks/quality.py C4.jsonl.gz WIKIPEDIA.txt.gz WIKITEXT.raw FOLDER [ROW ...]
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from command import bitwright

from bitwright.spec import to_spec
from bitwright.tune.preset import LEARNING, TOKENS

GEMMA = "gemma3-270m"
STEPS = 80  # about as many as the default preset has time for
HELD = 100  # documents of C4 that are only measured on
WINDOWS = {"WikiText-2": 10, "C4": 4}


class Row(NamedTuple):
    """How a model is made."""

    recipe: str
    target: float | str  # stored bits of the block linears, or the size of the files
    options: tuple[str, ...] = ()  # of quantize
    steps: int = 0  # of tuning
    model: str = "smollm2"
    learning: tuple[tuple[str, float], ...] = ()  # what tuning does otherwise than the presets


UNIFORM = ("--score", "uniform")
LLAMA = {4.25: 22.05, 3.44: 28.27, 3.06: 35.79, 2.63: 65.1, 2.56: 105.8, 2.06: 612.0, 1.75: 1272.0}
ROWS: dict[str, Row] = {
    **{f"{bits} fast": Row("qtip", bits) for bits in (2.06, 3.06, 2.56, 1.75, 4.25)},
    **{f"{bits} default": Row("qtip", bits, steps=STEPS) for bits in (2.06, 3.06, 2.56, 1.75)},
    **{f"{bits} long": Row("qtip", bits, steps=6 * STEPS) for bits in (2.06, 3.06)},
    "3.06 default, rates alike": Row("qtip", 3.06, steps=STEPS, learning=(("per_bit", 0.0),)),
    "2.06 longest": Row("qtip", 2.06, steps=10 * STEPS),  # each text once
    **{f"{size} default": Row("qtip", size, steps=STEPS) for size in ("45MB", "38MB", "32MB")},
    **{f"Gemma {bits} fast": Row("qtip", bits, model=GEMMA) for bits in (2.06, 3.06)},
    **{f"Gemma {bits} default": Row("qtip", bits, steps=STEPS, model=GEMMA) for bits in (2.06, 3.06)},
}
for bits in (2.06, 3.06):
    for tuned, steps in (("", 0), (", tuned", STEPS)):
        ROWS[f"{bits} without rotation{tuned}"] = Row("trellis", bits, steps=steps)
        ROWS[f"{bits} without allocation{tuned}"] = Row("qtip", bits, UNIFORM, steps)
        ROWS[f"{bits} without trellis, rotation, drift{tuned}"] = Row("gptq", bits, ("--set", "drift=0"), steps)
    ROWS[f"{bits} without allocation, rotation, tuned"] = Row("trellis", bits, UNIFORM, STEPS)
    ROWS[f"{bits} without rotation, long"] = Row("trellis", bits, steps=6 * STEPS)
    ROWS[f"{bits} without rotation, longest"] = Row("trellis", bits, steps=10 * STEPS)
    ROWS[f"{bits} without propagation"] = Row("qtip", bits, ("--set", "propagate=false"))
    ROWS[f"{bits} without drift"] = Row("qtip", bits, ("--set", "drift=0"))
    ROWS[f"{bits} without hidden states, tuned"] = Row("qtip", bits, steps=STEPS, learning=(("hidden", 0.0),))


def split(c4: Path, folder: Path) -> tuple[Path, Path]:
    """C4 without its last documents, and those."""
    learned, held = folder / "c4-learned.jsonl", folder / "c4-held.jsonl"
    if not held.exists():
        with gzip.open(c4, "rt", encoding="utf-8") as file:
            lines = file.readlines()
        learned.write_text("".join(lines[:-HELD]))
        held.write_text("".join(lines[-HELD:]))
    return learned, held


def articles(more: Path, folder: Path) -> Path:
    """Text between <doc ...> and </doc>: a model learns such marks quickly, and nothing else from them."""
    place = folder / "articles.jsonl"
    if not place.exists():
        with gzip.open(more, "rt", encoding="utf-8") as file:
            found = re.findall(r"<doc [^>]*>\n(.*?)</doc>", file.read(), re.DOTALL)
        place.write_text("".join(json.dumps({"text": text.strip()}) + "\n" for text in found if text.strip()))
    return place


def make(name: str, row: Row, learned: Path, more: Path, folder: Path) -> tuple[Path, dict[str, float]]:
    """The folder of a row, and the seconds of what was made now."""
    recipe, target, options, steps, model, learning = row
    lead = "" if model == "smollm2" else f"{model}-"
    options = (*options, "--tokens", str(TOKENS)) if steps else options  # as presets that learn do
    base = folder / f"{lead}{recipe}-{target}-{'-'.join(options).replace('--', '').replace('=', '-')}".rstrip("-")
    seconds: dict[str, float] = {}
    if not base.exists():
        start = time.monotonic()
        goal = ["--target-size" if isinstance(target, str) else "--target-bpw", target]
        bitwright("quantize", model, "--recipe", recipe, *goal, *options, "--data", learned, "--data", more, "-o", base)
        seconds["quantize"] = time.monotonic() - start
    if not steps:
        return base, seconds
    tuned = Path("-".join((f"{base}-{steps}", *(f"{key}-{value}" for key, value in learning))))
    if not tuned.exists():
        start = time.monotonic()
        settings = ({} if recipe == "gptq" else to_spec(LEARNING)) | dict(learning)
        rates = [f"--set={key}={json.dumps(value)}" for key, value in settings.items() if key != "kind"]
        bitwright("tune", base, "--data", learned, "--data", more, "--steps", steps, *rates, "-o", tuned)
        seconds["tune"] = time.monotonic() - start
    return tuned, seconds


def measure(name: str, row: Row, c4: Path, more: Path, text: Path, folder: Path) -> dict[str, Any]:
    """One row, measured on both texts."""
    learned, held = split(c4, folder)
    model, seconds = make(name, row, learned, articles(more, folder), folder)
    texts = {"WikiText-2": text, "C4": held}
    found = {on: bitwright("evaluate", model, "--text", texts[on], "--windows", n) for on, n in WINDOWS.items()}
    return {"seconds": seconds, "measured": found}


def of(measured: dict[str, Any]) -> str:
    """Perplexity, that of the float model, divergence."""
    own, float_ = measured["perplexity"], measured["reference"]["perplexity"]
    return f"{own:.2f} ± {measured['perplexity_difference_se']:.2f} | {float_:.2f} | {measured['kl_mean']:.3f}"


def llama(row: Row) -> float | str:
    """Perplexity of llama.cpp's best type at these bits, where it was measured."""
    return LLAMA.get(row.target, "") if row.model == "smollm2" and isinstance(row.target, float) else ""


def table(found: dict[str, Any]) -> str:
    """Markdown of the rows that are there."""
    lines = [
        "| model | stored bits | file MB | WikiText-2 | float | KL | C4 | float | KL | llama.cpp at these bits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (n for n in ROWS if n in found):
        wiki, c4 = (found[name]["measured"][on] for on in WINDOWS)
        lines.append(
            f"| {name} | {wiki['stored_bits_per_weight']:.3f} | {wiki['file_bytes'] / 1e6:.1f} "
            f"| {of(wiki)} | {of(c4)} | {llama(ROWS[name])} |"
        )
    return "\n".join(lines) + "\n"


def main(c4: str, more: str, text: str, folder: str, *wanted: str) -> None:
    """All rows that are not there yet, with a line for each."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    results = place / "results.json"
    for name in wanted or ROWS:
        found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
        if name not in found:
            try:
                found[name] = measure(name, ROWS[name], Path(c4), Path(more), Path(text), place)
            except subprocess.CalledProcessError as error:
                print(f"{name}: command failed with exit code {error.returncode}", file=sys.stderr, flush=True)
                continue
            results.write_text(json.dumps(found, indent=1))
            (place / "table.md").write_text(table(found))
        wiki, second = (found[name]["measured"][on] for on in WINDOWS)
        print(f"{name}: perplexity {wiki['perplexity']:.2f}, on C4 {second['perplexity']:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
