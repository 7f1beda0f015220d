"""SmolLM2 by the recipes that binarize, at their natural settings and at equal bits; writes docs/binarization.md.

Each row quantizes; then all new ones are measured together: perplexity, KL divergence, tokens a second. What was found
is kept in binarization.json beside this script, and rows that are there are not done again. Run:

    python benchmarks/binarization.py CALIBRATION.jsonl.gz WIKITEXT.raw FOLDER [ROW ...]

Without arguments it writes the page of the rows that are there; `python benchmarks/binarization.py speed FOLDER` takes
the tokens a second of the models in FOLDER anew, in turns, as quantizing slows down what is measured beside it, and
what they take in memory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from command import bitwright

from bitwright.cli.subject import open_subject

HOME = Path(__file__).parent
RESULTS, PAGE = HOME / "binarization.json", HOME.parent / "docs" / "binarization.md"
ELASTIC = HOME / "elastic.json"  # written by elastic.py
MODEL = "smollm2"
TOKENS = 10240
WINDOWS = 10
TURNS, PROMPT = 5, list(range(1000, 1016))
MEASURED = ("stored_bits_per_weight", "file_bytes", "perplexity", "kl_mean", "tokens_per_second")
FINE = (
    'rules=[["*.v_proj",{"kind":"integer","bits_per_code":6,"group":64,"search":20}],'
    '["*.k_proj",{"kind":"integer","bits_per_code":4,"group":64,"search":20}]]'
)
GROUPED = (
    'format={"kind":"zoned","low":{"kind":"residual","order":2,"group":128,"rounds":3,"columns":"own"},'
    '"salient":"alternating"}'
)
ROTATED = 'format={"kind":"rotated","inner":{"kind":"residual","order":2,"group":64,"rounds":3,"columns":"own"}}'
SIX = '{"kind":"rotated","inner":{"kind":"integer","bits_per_code":6,"group":64,"search":20}}'
FINE_TURNED = f'rules=[["*.v_proj",{SIX}],["*.k_proj",{SIX}]]'
FOUR = ("--set", "format.salient_bits=4")
GPTQ = ("--set", 'solver={"kind":"gptq"}')
DRIFT = ("--set", "drift=0.5")
# name: recipe, further arguments, what the paper counts as bits
ROWS: dict[str, tuple[str, list[str], str]] = {
    "ARB-LLM, group 64, v 6 bits, k 4": ("arb-llm", ["--set", "format.group=64", "--set", FINE], "1.09"),
    "ARB-LLM, rotated, group 64, v 6 bits, k 4": ("arb-llm", ["--set", ROTATED, "--set", FINE], "1.09"),
    "ARB-LLM, rotated, group 64, v and k 6 bits": ("arb-llm", ["--set", ROTATED, "--set", FINE_TURNED], "1.09"),
    "ARB-LLM": ("arb-llm", [], "1.09"),
    "ARB-LLM with column groups": ("arb-llm", ["--set", GROUPED], "1.09"),
    "BiLLM": ("bi-llm", [], "1.08"),
    "BiLLM, v 6 bits, k 4": ("bi-llm", ["--set", FINE], "1.08"),
    "PTQ1.61": ("ptq161", [], "1.61"),
    "DB-LLM, start": ("db-llm", [], "2.5"),
    "OneBit, start": ("onebit", [], "1.01"),
    "BinaryMoS, start": ("binary-mos", [], "1.05"),
    "PB-LLM, 10 % at 4 bits": ("pb-llm", ["--set", "format.by.share=0.1", *FOUR], "1.3"),
    "PB-LLM, 30 % at 4 bits": ("pb-llm", ["--set", "format.by.share=0.3", *FOUR], "1.9"),
    "PB-LLM, 30 % at 4 bits, drift": ("pb-llm", [*DRIFT, "--set", "format.by.share=0.3", *FOUR], "1.9"),
    "PB-LLM, 10 % at 4 bits, GPTQ alone": ("pb-llm", [*GPTQ, "--set", "format.by.share=0.1", *FOUR], "1.3"),
    "PB-LLM, 30 % at 4 bits, GPTQ alone": ("pb-llm", [*GPTQ, "--set", "format.by.share=0.3", *FOUR], "1.9"),
    "STBLLM 4:8": ("st-bllm", [], "0.55"),
    "STBLLM 4:8, drift": ("st-bllm", [*DRIFT], "0.55"),
    "PTQ1.61 at 1.6": ("ptq161", ["--bits", "1.6"], "1.61"),
    "ARB-LLM at 1.1": ("arb-llm", ["--bits", "1.1"], "1.09"),
    "ARB-LLM at 1.6": ("arb-llm", ["--bits", "1.6"], "1.09"),
    "ARB-LLM at 2.1": ("arb-llm", ["--bits", "2.1"], "1.09"),
    "ARB-LLM at 2.1, drift": ("arb-llm", [*DRIFT, "--bits", "2.1"], "1.09"),
    "ARB-LLM at 2.7": ("arb-llm", ["--bits", "2.7"], "1.09"),
    "BiLLM at 2.1": ("bi-llm", ["--bits", "2.1"], "1.08"),
    "BiLLM at 2.1, drift": ("bi-llm", [*DRIFT, "--bits", "2.1"], "1.08"),
    "PTQ1.61 at 2.1": ("ptq161", ["--bits", "2.1"], "1.61"),
    "PTQ1.61 at 2.1, drift": ("ptq161", [*DRIFT, "--bits", "2.1"], "1.61"),
    "PTQ1.61 at 2.7": ("ptq161", ["--bits", "2.7"], "1.61"),
    "PB-LLM at 2.7": ("pb-llm", [*FOUR, "--bits", "2.7"], "1.7"),
    "PB-LLM at 2.7, drift": ("pb-llm", [*DRIFT, *FOUR, "--bits", "2.7"], "1.7"),
    "STBLLM at 1.6": ("st-bllm", ["--bits", "1.6"], "0.55"),
    "DB-LLM at 2.1, start": ("db-llm", ["--bits", "2.1"], "2.5"),
    "DB-LLM at 2.1, start, drift": ("db-llm", [*DRIFT, "--bits", "2.1"], "2.5"),
    "PTQ1.61 at 1.1": ("ptq161", ["--bits", "1.1"], "1.61"),
    "STBLLM at 1.1": ("st-bllm", ["--bits", "1.1"], "0.55"),
}
NAMES = {
    "bit-stack": "BitStack",
    "onebit": "OneBit, start",
    "binary-mos": "BinaryMoS, start",
    "ptq161": "PTQ1.61",
    "st-bllm": "STBLLM",
    "bi-llm": "BiLLM",
    "arb-llm": "ARB-LLM",
    "db-llm": "DB-LLM, start",
    "pb-llm": "PB-LLM",
}
COLUMNS = (1.1, 1.6, 2.1, 2.7)
HEAD = f"""# Binarization, stored and run

Every method below is a recipe: it makes a packed model whose file is as small as the column says, and which the
kernels run as it lies on disk, but for the planes of STBLLM, which become ternary ones of 2 bits when they are loaded,
the columns of PTQ1.61, whose codes are put beside each other, and BinaryMoS, which torch runs module by module. "Bits"
are stored bits a weight of the block linears, with scales, masks and padding; "paper" is what the paper counts. No
method is trained here; `bitwright train` does that, from these models ([training](training.md)). The embedding, tied
with the head, has 8 bits in all of them (29 MB of each file). "Rotated": planes of weights whose inputs are
[spread](quality.md#rotated-inputs), which is no part of the paper. Single layers are compared in
[layer errors](layer-errors.md).

SmolLM2-135M-Instruct (float: 19.9), WikiText-2 test, first {WINDOWS} windows of 2048 tokens, 8-bit activations;
calibration on {TOKENS} tokens of C4; 2 cores of a Zen 4 server that did other work as well (2026-11-22; these rows
were kept as rounded) or of a Zen 5 EPYC virtual machine (later), so tokens a second compare within a day only and
seconds of `quantize` are upper bounds. "In memory" is what the process holds more, buffers included
(`benchmarks/memory.py`). llama.cpp's types in the same linears: 65.1 at 2.63 bits (Q2_K), 612 at 2.06 (IQ2_XXS), 1272
at 1.75 (IQ1_M). Rotated rows have blocks of columns rotated apart, as it was then. The columns of PTQ1.61 ran as
bitmaps in these rows; at 1.89 bits it takes 68 MB in memory now (87 then) and decodes 1.8 times as fast (664 and 360
tokens a second, two threads, `bitwright bench` with the build before and after one after the other, 2026-11-30; codes
rounded to nearest, which changes neither).

Weights that make up for half of what inputs have lost ("drift", which all recipes here but `onebit`, `binary-mos` and
`bit-stack` have of their own; rows without the word were made without it; [why](quality.md#what-inputs-have-lost))
count for more than the method does: at 2.1 bits it takes BiLLM from 1,980 to 275, PTQ1.61 from 604 to 254, STBLLM 4:8
from 485 to 172. More text to calibrate on, and blocks that are mixed, count too: the first rotated row of ARB-LLM
below (2.72 bits, 61.0) with `--tokens 40960` of C4 and Wikipedia has perplexity 51.1 ± 5.7, KL 0.95, and with drift
**45.4 ± 3.8**, KL 0.79 (2026-11-30 and 2026-12-01; two `--data`, otherwise the same command).
Trained, two planes with a scale a row (2.05 bits) have 54.5 with the values of DB-LLM and 45.5 with signs, in 90
steps, one plane with OneBit's scales (1.05 bits) 266 in 300 ([training](training.md)).

Rows are made, and kept in `benchmarks/binarization.json`, by

```sh
python benchmarks/binarization.py C4.jsonl.gz wiki.test.raw FOLDER
```

and this page is written from them by the same command without arguments.

| method | bits | paper | MB | in memory, MB | perplexity | KL | tokens/s | seconds | day |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""
EQUAL = """

## At equal bits

The best perplexity that each method has among the rows above with so many stored bits (to one digit) or fewer, and
the bits it took. Only the column of 2.1, for PB-LLM that of 2.7, was made with drift too, of STBLLM its natural
setting (2.16): other places of the table would be better with it. BitStack is one file for all sizes
([elastic files](elastic.md)), with an embedding of 6 bits. "-": it stores more.

"""


def make(name: str, calibration: str, folder: Path) -> dict[str, Any]:
    """One model, and how long it took."""
    recipe, options, _ = ROWS[name]
    options = options if name.endswith(", drift") else ["--set", "drift=0", *options]
    out = place(name, folder)
    shutil.rmtree(out, ignore_errors=True)  # of a run that ended before it could note the time
    start = time.monotonic()
    bitwright("quantize", MODEL, "--recipe", recipe, *options, "--data", calibration, "--tokens", TOKENS, "-o", out)
    return {"seconds": round(time.monotonic() - start), "day": date.today().isoformat()}


def measure(names: list[str], text: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Several models in one run: the float model reads the text once for all of them."""
    outs = [place(name, folder) for name in names]
    _, *told = bitwright("compare", MODEL, *outs, "--text", text, "--windows", WINDOWS)["models"]
    return {name: {column: row[column] for column in MEASURED} for name, row in zip(names, told, strict=True)}


def speeds(folder: Path) -> None:
    """Tokens a second of every model that is there, the median of `TURNS` turns, and what it takes in memory."""
    found = json.loads(RESULTS.read_text())
    subjects = {name: open_subject(str(place(name, folder))) for name in found if place(name, folder).exists()}
    speakers = {name: subject.speaker() for name, subject in subjects.items()}
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(TURNS):
        for name, speaker in speakers.items():
            start = time.perf_counter()
            count = sum(1 for _ in speaker.tokens(PROMPT, 64))
            rates[name].append(count / (time.perf_counter() - start))
    for name, every in rates.items():
        found[name]["tokens_per_second"] = median(every)
        command = [sys.executable, HOME / "memory.py", place(name, folder)]
        found[name]["memory"] = int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    keep(found)


def place(name: str, folder: Path) -> Path:
    return folder / "".join(c if c.isalnum() else "-" for c in name)


def at_most(bits: float, rows: list[dict[str, Any]]) -> str:
    """The best perplexity that a method has with so many bits (to one digit), and the bits that it took."""
    fitting = [row for row in rows if round(row["stored_bits_per_weight"], 1) <= bits]
    if not fitting:
        return "-"
    best = min(fitting, key=lambda row: row["perplexity"])
    return f"{best['perplexity']:,.1f} ({best['stored_bits_per_weight']:.2f})"


def equal(found: dict[str, Any]) -> str:
    """Methods side by side at equal bits."""
    rows: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in NAMES}
    for name, row in found.items():
        rows[ROWS[name][0]].append(row)
    rows["bit-stack"] = json.loads(ELASTIC.read_text())["rows"]
    lines = [f"| method | {' | '.join(map(str, COLUMNS))} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    for recipe, name in NAMES.items():
        lines.append(f"| {name} | {' | '.join(at_most(bits, rows[recipe]) for bits in COLUMNS)} |")
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    """The page of the rows that are there, by bits."""
    lines = []
    for name in sorted((n for n in ROWS if n in found), key=lambda n: found[n]["stored_bits_per_weight"]):
        r = found[name]
        memory = f"{r['memory'] / 1e6:.0f}" if "memory" in r else ""
        lines.append(
            f"| {name} | {r['stored_bits_per_weight']:.2f} | {ROWS[name][2]} | {r['file_bytes'] / 1e6:.1f} "
            f"| {memory} | {r['perplexity']:,.1f} | {r['kl_mean']:.2f} | {r['tokens_per_second']:.0f} "
            f"| {r['seconds']:.0f} | {r['day']} |"
        )
    return HEAD + "\n".join(lines) + EQUAL + equal(found) + "\n"


def keep(found: dict[str, Any]) -> None:
    """One line a row, so that rows can be compared and merged."""
    RESULTS.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}\n")


def add(calibration: str, text: str, folder: Path, wanted: list[str]) -> None:
    """All rows that are not there yet, with a line for each: made one by one, then measured together."""
    folder.mkdir(parents=True, exist_ok=True)
    made_before = folder / "made.json"  # but not measured
    found = json.loads(RESULTS.read_text())
    made: dict[str, Any] = json.loads(made_before.read_text()) if made_before.exists() else {}
    for name in wanted:
        if name not in found | made:
            try:
                made[name] = make(name, calibration, folder)
            except subprocess.CalledProcessError as error:
                print(f"{name}: command failed with exit code {error.returncode}", file=sys.stderr, flush=True)
                continue
            made_before.write_text(json.dumps(made, indent=1))
    new = [name for name in made if name not in found]
    for name, row in (measure(new, text, folder) if new else {}).items():
        found[name] = row | made[name]
        print(f"{name}: {row['stored_bits_per_weight']:.3f} bits, perplexity {row['perplexity']:.2f}", flush=True)
    keep(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["speed"]:
        speeds(Path(sys.argv[2]))
    elif sys.argv[1:]:
        add(*sys.argv[1:3], Path(sys.argv[3]), sys.argv[4:] or list(ROWS))
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
