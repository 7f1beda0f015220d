"""What the allocator chooses between: every tensor in every format, with its losses and its costs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from bitwright.allocate.choose import Allocation, option_of
from bitwright.allocate.problem import Option, Unit
from bitwright.artifact.layout import expert_of
from bitwright.protocols import Format
from bitwright.recipe import Menu
from bitwright.sensitivity.scores import DIVERGENCES, losses
from bitwright.sensitivity.table import Table, key
from bitwright.spec import label

if TYPE_CHECKING:
    from bitwright.engine.speed import Latency

BYTES, NANOSECONDS, BIT_OPERATIONS = "bytes", "nanoseconds", "bit operations"
"""What options cost: in the file, and for one token on this machine or on any."""

BLOCK, EXPERT = r"block \d+", r"block \d+, expert \d+"
"""Tags of units, as patterns."""

TABLES = "embedding and head"  # their unit
ACTIVATION_BITS = 8
UNIFORM = "uniform"  # a score for comparison: one format for all blocks
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Units:
    """Units with the losses that choose, and the same units with predicted divergences."""

    chosen_by: list[Unit]
    told_by: list[Unit]
    blocks: tuple[str, ...]
    places: dict[str, tuple[str, int | None]]  # unit -> kind of linear, and which third of the blocks it is in
    weights: dict[str, int]  # of a unit

    def divergence(self, allocation: Allocation) -> float:
        """Predicted for a choice, nats a token."""
        return sum(option_of(unit, allocation.choice[unit.name]).loss for unit in self.told_by)


def make_units(
    score: str, menu: Menu, table: Table, shapes: Shapes, tables: Shapes, latency: Latency | None = None
) -> Units:
    """Units of block weights by `shapes`, and one of embedding and head (`tables`, none: they are fixed).

    Options cost bytes, bit operations and, given a `latency`, nanoseconds.
    """

    def cost(
        fmt: Format, shapes: Iterable[tuple[int, ...]], multiplied: tuple[int, ...], share: float = 1.0
    ) -> dict[str, int]:
        found = {BYTES: sum(stored_bytes(fmt, shape) for shape in shapes)}
        found[BIT_OPERATIONS] = round(share * bit_operations(fmt, multiplied))
        if latency is not None:
            found[NANOSECONDS] = latency.products[fmt, (multiplied[-2], multiplied[-1])]
        return found

    def units(by: str) -> list[Unit]:
        lost = losses(table, by, menu.formats, shapes, menu.reference)
        return [
            Unit(
                name,
                tuple(
                    Option(label(f), lost[name][label(f)], cost(f, [shape], shape, table.tensors[name].share))
                    for f in menu.formats
                ),
                _tags(name, table.tensors[name].block),
            )
            for name, shape in shapes.items()
        ]

    whole = []
    if tables:
        options = (
            Option(label(f), table.tables[key(f)], cost(f, tables.values(), next(reversed(tables.values()))))
            for f in menu.tables
        )
        whole = [Unit(TABLES, tuple(options))]
    told_by = units(score if score in DIVERGENCES else DIVERGENCES[0]) + whole
    chosen_by = told_by if score in (*DIVERGENCES, UNIFORM) else units(score) + whole
    places = {name: _place(table.tensors[name].group) for name in shapes} | {TABLES: (TABLES, None)}
    weights = {name: prod(shape) for name, shape in shapes.items()}
    weights[TABLES] = sum(prod(shape) for shape in tables.values())
    return Units(chosen_by, told_by, tuple(shapes), places, weights)


def _tags(name: str, block: int) -> frozenset[str]:
    part = expert_of(name)
    tags = {f"block {block}"} | ({f"block {block}, expert {part[1]}"} if part is not None else set())
    return frozenset(tags)


def tied(units: list[Unit], tag: str) -> tuple[tuple[str, ...], ...]:
    """Names of the units that have each of the tags which this pattern matches in full."""
    found: dict[str, list[str]] = {}
    for unit in units:
        for own in sorted(unit.tags):
            if re.fullmatch(tag, own):
                found.setdefault(own, []).append(unit.name)
    return tuple(map(tuple, found.values()))


def _place(group: str) -> tuple[str, int | None]:
    kind, _, part = group.partition(", part ")
    return kind, int(part.split()[0])


def bit_operations(fmt: Format, shape: tuple[int, ...]) -> int:
    """Of one token: every code meets one activation."""
    return ACTIVATION_BITS * fmt.bits((shape[-2], shape[-1])).codes


def stored_bytes(fmt: Format, shape: tuple[int, ...]) -> int:
    """Of a matrix [R, C] or a stack of them."""
    return fmt.bits((shape[-2], shape[-1])).bytes * (shape[0] if len(shape) == 3 else 1)
