"""One table of results for the terminal, for Markdown and for machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import floor, log10
from typing import Any

from rich.table import Table

from bitwright.evaluate.result import Result


@dataclass(frozen=True)
class Row:
    """What one model is and what it keeps; None is "not measured"."""

    name: str
    file_bytes: int | None = None  # all safetensors of the folder
    stored_bits_per_weight: float | None = None  # of the linears in the blocks
    perplexity: float | None = None
    perplexity_difference_se: float | None = None  # of the difference to the float model, paired over windows
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    tokens_per_second: float | None = None

    @classmethod
    def of(
        cls,
        result: Result,
        *,
        file_bytes: int | None = None,
        stored_bits_per_weight: float | None = None,
        tokens_per_second: float | None = None,
    ) -> Row:
        """A measured model."""
        values = result.to_json()
        return cls(
            name=result.name,
            file_bytes=file_bytes,
            stored_bits_per_weight=stored_bits_per_weight,
            tokens_per_second=tokens_per_second,
            **{key: values[key] for key in _MEASURED},
        )

    def to_json(self) -> dict[str, Any]:
        """Every field under its own name."""
        return asdict(self)


_MEASURED = ("perplexity", "perplexity_difference_se", "kl_mean", "kl_p99", "top1_agreement")


def number(value: float | None) -> str:
    """Four significant digits, three below 1, and never less than the whole part: 19.92, 0.0123, 30110, 2.4e+06."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    exponent = floor(log10(abs(value)))
    return max(0, (3 if exponent >= 0 else 2) - exponent)


def _perplexity(row: Row) -> str:
    value, error = row.perplexity, row.perplexity_difference_se
    if value is None or error is None or value >= 1e6:
        return number(value)
    return f"{number(value)} ± {error:.{_decimals(value)}f}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("model", lambda row: row.name),
    ("file MB", lambda row: "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}"),
    ("stored bits", lambda row: "" if row.stored_bits_per_weight is None else f"{row.stored_bits_per_weight:.2f}"),
    ("perplexity", _perplexity),
    ("KL mean", lambda row: number(row.kl_mean)),
    ("KL p99", lambda row: number(row.kl_p99)),
    ("top-1", lambda row: "" if row.top1_agreement is None else f"{row.top1_agreement:.1%}"),
    ("tokens/s", lambda row: "" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}"),
)
"""Heading and cell. A column that is empty in every row is left out."""


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    cells = [[cell(row) for _, cell in COLUMNS] for row in rows]
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(line[i] for line in cells)]
    return [COLUMNS[i][0] for i in used], [[line[i] or "-" for i in used] for line in cells]


def terminal(rows: Sequence[Row], protocol: str) -> Table:
    """For `rich`; the protocol stands below."""
    headings, lines = _cells(rows)
    table = Table(caption=protocol, caption_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(rows: Sequence[Row], protocol: str) -> str:
    """A Markdown table, the protocol below it."""
    headings, lines = _cells(rows)
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *escaped])
    return f"{table}\n\n{protocol}\n"
