"""SmolLM2 by the recipes that binarize, at their natural settings and at equal bits; writes docs/binarization.md.

Each row quantizes; then all are measured together: perplexity, KL divergence, tokens a second. Finished rows are kept
in FOLDER/results.json and not done again. Run:

    python benchmarks/binarization.py CALIBRATION.jsonl.gz WIKITEXT.raw FOLDER PAGE.md [ROW ...]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from command import bitwright

MODEL = "smollm2"
TOKENS = 10240
WINDOWS = 10
FINE = (
    'rules=[["*.v_proj",{"kind":"integer","bits_per_code":6,"group":64,"search":20}],'
    '["*.k_proj",{"kind":"integer","bits_per_code":4,"group":64,"search":20}]]'
)
GROUPED = (
    'format={"kind":"zoned","low":{"kind":"residual","order":2,"group":128,"rounds":3,"columns":"own"},'
    '"salient":"alternating"}'
)
# name: recipe, further arguments, what the paper counts as bits
ROWS: dict[str, tuple[str, list[str], str]] = {
    "ARB-LLM, group 64, v 6 bits, k 4": ("arb-llm", ["--set", "format.group=64", "--set", FINE], "1.09"),
    "ARB-LLM": ("arb-llm", [], "1.09"),
    "ARB-LLM with column groups": ("arb-llm", ["--set", GROUPED], "1.09"),
    "BiLLM": ("bi-llm", [], "1.08"),
    "BiLLM, v 6 bits, k 4": ("bi-llm", ["--set", FINE], "1.08"),
    "PTQ1.61": ("ptq161", [], "1.61"),
    "DB-LLM, start": ("db-llm", [], "2.5"),
    "OneBit, start": ("onebit", [], "1.01"),
    "BinaryMoS, start": ("binary-mos", [], "1.05"),
    "PB-LLM, 10 % at 4 bits": ("pb-llm", ["--set", "format.by.share=0.1", "--set", "format.salient_bits=4"], "1.3"),
    "PB-LLM, 30 % at 4 bits": ("pb-llm", ["--set", "format.by.share=0.3", "--set", "format.salient_bits=4"], "1.9"),
    "STBLLM 4:8": ("st-bllm", [], "0.55"),
    "PTQ1.61 at 1.6": ("ptq161", ["--bits", "1.6"], "1.61"),
    "ARB-LLM at 1.1": ("arb-llm", ["--bits", "1.1"], "1.09"),
    "ARB-LLM at 1.6": ("arb-llm", ["--bits", "1.6"], "1.09"),
    "ARB-LLM at 2.1": ("arb-llm", ["--bits", "2.1"], "1.09"),
    "ARB-LLM at 2.7": ("arb-llm", ["--bits", "2.7"], "1.09"),
    "BiLLM at 2.1": ("bi-llm", ["--bits", "2.1"], "1.08"),
    "BiLLM at 2.7": ("bi-llm", ["--bits", "2.7"], "1.08"),
    "PTQ1.61 at 2.1": ("ptq161", ["--bits", "2.1"], "1.61"),
    "PTQ1.61 at 2.7": ("ptq161", ["--bits", "2.7"], "1.61"),
    "PB-LLM at 2.7": ("pb-llm", ["--set", "format.salient_bits=4", "--bits", "2.7"], "1.7"),
}
HEAD = """# Binarization, stored and run

Every method below is a recipe: it makes a packed model whose file is as small as the column says, and which the
kernels run as it lies on disk. "Bits" are stored bits a weight of the block linears, with scales, masks and padding;
"paper" is what the paper counts. No method is trained here; `bitwright train` does that, from these models
([training](training.md)). The embedding, tied with the head, has 8 bits in all of them ({table} MB of each file). Rows
that are not measured yet are missing; the command makes them. Single layers are compared in
[layer errors](layer-errors.md).

{model}, WikiText-2 test, first {windows} windows of 2048 tokens, 8-bit activations;
calibration on {tokens} tokens of C4; {machine}, {date}. Seconds are those of `quantize`{busy}. Made by

```sh
python benchmarks/binarization.py C4.jsonl.gz wiki.test.raw FOLDER docs/binarization.md
```

| method | bits | paper | MB | perplexity | KL | tokens/s | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
MACHINE, DATE = "2 cores of a Zen 4 server", "2026-11-22"


def make(name: str, calibration: str, folder: Path) -> dict[str, Any]:
    """One model, and how long it took."""
    recipe, options, _ = ROWS[name]
    out = place(name, folder)
    shutil.rmtree(out, ignore_errors=True)  # of a run that ended before it could note the time
    start = time.monotonic()
    bitwright("quantize", MODEL, "--recipe", recipe, *options, "--data", calibration, "--tokens", TOKENS, "-o", out)
    return {"seconds": time.monotonic() - start}


def measure(names: list[str], text: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Several models in one run: the float model reads the text once for all of them."""
    outs = [place(name, folder) for name in names]
    _, *told = bitwright("compare", MODEL, *outs, "--text", text, "--windows", WINDOWS)["models"]
    return dict(zip(names, told, strict=True))


def place(name: str, folder: Path) -> Path:
    return folder / "".join(c if c.isalnum() else "-" for c in name)


def page(found: dict[str, Any]) -> str:
    """The page of the rows that are there, by bits."""
    lines = []
    for name in sorted((n for n in ROWS if n in found), key=lambda n: found[n]["measured"]["stored_bits_per_weight"]):
        r, m = found[name], found[name]["measured"]
        lines.append(
            f"| {name} | {m['stored_bits_per_weight']:.2f} | {ROWS[name][2]} | {m['file_bytes'] / 1e6:.1f} "
            f"| {m['perplexity']:.1f} | {m['kl_mean']:.2f} | {m['tokens_per_second']:.0f} | {r['seconds']:.0f} |"
        )
    head = HEAD.format(
        table="29",
        model="SmolLM2-135M-Instruct (float: 19.9)",
        windows=WINDOWS,
        tokens=TOKENS,
        machine=MACHINE,
        date=DATE,
        busy=" on cores that did other work as well",
    )
    return head + "\n".join(lines) + "\n"


def main(calibration: str, text: str, folder: str, to: str, *wanted: str) -> None:
    """All rows that are not there yet, with a line for each: made one by one, then measured together."""
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    results = home / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in wanted or ROWS:
        if name not in found:
            try:
                found[name] = make(name, calibration, home)
            except subprocess.CalledProcessError as error:
                print(f"{name}: command failed with exit code {error.returncode}", file=sys.stderr, flush=True)
                continue
            results.write_text(json.dumps(found, indent=1))
    if new := [name for name in found if "measured" not in found[name]]:
        for name, row in measure(new, text, home).items():
            found[name]["measured"] = row
        results.write_text(json.dumps(found, indent=1))
    Path(to).write_text(page(found))
    for name in (n for n in wanted or ROWS if n in found):
        m = found[name]["measured"]
        print(f"{name}: {m['stored_bits_per_weight']:.3f} bits, perplexity {m['perplexity']:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
