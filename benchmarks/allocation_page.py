"""The page of `benchmarks/allocation.py`: a table of sizes and scores, a plot, and where the bits went.

Works on whatever rows are there. Run:

    python benchmarks/allocation_page.py RESULTS.json docs/allocation-results.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitwright.report.charts import frontiers
from bitwright.report.tables import number

Found = dict[str, dict[str, Any]]
HOME = "gptq"  # the recipe whose name is left out

HEAD = """# Bits where they matter: measured

SmolLM2-135M at equal size of the weight files: one format for all blocks (`uniform`) against every score of the
allocator ([what they are](allocation.md#scores)). Same solver, calibration text and protocol in every row:
{protocol}.
Whole blocks at 4 or 2 bits (`lim`, `zd`) cannot be put into 38 MB: the smallest file of that recipe has 42.2 MB.
Made by `python benchmarks/allocation.py C4.jsonl.gz wiki.test.raw FOLDER` on 2 cores of a Zen 4 server, 2026-11-22;
this page by `python benchmarks/allocation_page.py FOLDER/results.json docs/allocation-results.md`.
Since then `gptq`, whose formats these are, makes up for [what inputs have lost](quality.md#what-inputs-have-lost).
"""


def named(row: dict[str, Any]) -> str:
    return row["score"] if row["recipe"] == HOME else f"{row['score']} ({row['recipe']})"


def table(headings: Sequence[str], rows: Iterator[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(headings), rule, *rows]) + "\n"


def sizes(found: Found) -> list[int]:
    return sorted({row["size"] for row in found.values()}, reverse=True)


def recipes(found: Found) -> list[str]:
    return [row["recipe"] for row in found.values()]


def compared(found: Found) -> str:
    """Perplexity, KL and bytes by score and size; the best perplexity of a size is bold."""
    cells = {(named(row), row["size"]): row["measured"] for row in found.values()}
    best = {size: min(m["perplexity"] for (_, s), m in cells.items() if s == size) for size in sizes(found)}

    def cell(name: str, size: int) -> str:
        m = cells.get((name, size))
        if m is None:
            return ""
        told = number(m["perplexity"])
        told = f"**{told}**" if m["perplexity"] == best[size] else told
        return f"{told}, {number(m['kl_mean'])}, {m['file_bytes'] / 1e6:.2f}"

    names = dict.fromkeys(named(row) for row in found.values())
    order = sorted(names, key=lambda name: (name != "uniform", "(" in name))
    lines = ([name, *(cell(name, size) for size in sizes(found))] for name in order)
    return "Perplexity, mean KL divergence in nats a token, MB of the file:\n\n" + table(
        ["score", *(f"{size} MB" for size in sizes(found))], lines
    )


def against_uniform(found: Found) -> Iterator[str]:
    """One sentence a size and recipe."""
    for size, recipe in ((size, recipe) for size in sizes(found) for recipe in dict.fromkeys(recipes(found))):
        rows = {row["score"]: row for row in found.values() if row["size"] == size and row["recipe"] == recipe}
        if len(rows) < 2 or "uniform" not in rows:
            continue
        best = min(rows.values(), key=lambda row: row["measured"]["kl_mean"])
        here, there = best["measured"], rows["uniform"]["measured"]
        yield (
            f"- {size} MB: one format has {there['kl_mean'] / here['kl_mean']:.2f} times the KL divergence of "
            f"`{named(best)}` (perplexity {number(there['perplexity'])} against {number(here['perplexity'])})."
        )


def predicted(found: Found) -> str:
    """How far the additive predictions are from what was measured."""
    rows = [row for row in found.values() if row["score"] in ("fisher", "combined", "measured")]
    lines = (
        [
            f"{named(row)}, {row['size']} MB",
            number(row["plan"]["loss"]),
            number(row["measured"]["kl_mean"]),
            f"{row['measured']['kl_mean'] / row['plan']['loss']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: (named(row), -row["size"]))
    )
    return "Predicted on calibration text, measured on the test text:\n\n" + table(
        ["score and size", "predicted KL", "measured KL", "ratio"], lines
    )


def spent(row: dict[str, Any]) -> str:
    """Stored bits by kind and thirds of the blocks, and each kind's share of the predicted loss."""
    shares: dict[str, list[dict[str, Any]]] = {}
    for share in row["plan"].get("shares", ()):
        shares.setdefault(share["kind"], []).append(share)

    def total(of: list[dict[str, Any]], field: str) -> float:
        return sum(share[field] or 0.0 for share in of)

    loss, uniform = (total([s for own in shares.values() for s in own], f) or 1.0 for f in ("loss", "uniform_loss"))
    weights = sum(s["weights"] for own in shares.values() for s in own)

    def line(kind: str, own: list[dict[str, Any]]) -> list[str]:
        mean = sum(s["bits"] * s["weights"] for s in own) / total(own, "weights")
        return [
            kind,
            f"{total(own, 'weights') / weights:.1%}",
            f"{mean:.2f}",
            ", ".join(f"{s['bits']:.2f}" for s in own) if len(own) > 1 else "",
            f"{total(own, 'uniform_loss') / uniform:.1%}",
            f"{total(own, 'loss') / loss:.1%}",
        ]

    headings = ["kind", "weights", "bits", "by thirds", "loss if all had one format", "loss here"]
    return table(headings, (line(kind, own) for kind, own in shares.items()))


def where(found: Found) -> Iterator[str]:
    for size in sizes(found):
        rows = [row for row in found.values() if row["size"] == size and row["plan"].get("shares")]
        rows = [row for row in rows if row["score"] in ("fisher", "combined", "measured")]
        if rows:
            row = min(rows, key=lambda row: row["measured"]["kl_mean"])
            uniform = row["plan"]["uniform"]
            yield f"### {size} MB, `{named(row)}`\n\n{spent(row)}"
            yield f"One format: {uniform}.\n" if uniform else "No single format fits.\n"


def plot(found: Found, path: Path) -> None:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, field in (("perplexity", "perplexity"), ("KL divergence, nats a token", "kl_mean")):
        curves = panels.setdefault(name, {})
        for row in found.values():
            m = row["measured"]
            curves.setdefault(named(row), []).append((m["file_bytes"] / 1e6, m[field]))
    frontiers(panels, path)


def main(results: str, page: str) -> None:
    found: Found = json.loads(Path(results).read_text())
    if not found:
        raise SystemExit(f"{results} holds no row yet.")
    out = Path(page)
    picture = out.with_suffix(".svg")
    plot(found, picture)
    protocol = next((row["measured"]["protocol"] for row in found.values() if "protocol" in row["measured"]), None)
    told = "unknown" if protocol is None else "{text}, first {windows} windows of {window} tokens".format(**protocol)
    parts = [
        HEAD.format(protocol=told),
        compared(found),
        "\n".join(against_uniform(found)) + "\n",
        f"![perplexity and KL divergence against bytes]({picture.name})\n",
        "## How well it was predicted\n",
        predicted(found),
        "## Where the bits went, and why\n",
        "Stored bits a weight, everything counted; `by thirds` of the blocks, first to last. The loss columns say\n"
        "which share of the predicted loss a kind of linear has.\n",
        *where(found),
    ]
    out.write_text("\n".join(parts), encoding="utf-8")
    print(f"{len(found)} rows: {out}, {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
