"""Exact bits of a stored weight, by what they are spent on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Bits:
    """Bits of one stored weight by purpose; they add up over a model.

    `padding` counts every bit of a plane that belongs to no weight: rows up to a multiple of 16,
    columns up to the end of the last vector.
    """

    codes: int = 0
    scales: int = 0
    mins: int = 0
    masks: int = 0
    tables: int = 0
    padding: int = 0

    def __add__(self, other: Bits) -> Bits:
        return Bits(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        """All bits, padding included."""
        return sum(getattr(self, f.name) for f in fields(self))

    @property
    def bytes(self) -> int:
        """Whole bytes; every plane is a whole number of bytes."""
        return self.total // 8

    def named(self) -> dict[str, int]:
        """The parts by name, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def total(parts: Iterable[Bits]) -> Bits:
    """Sum of many `Bits`."""
    return sum(parts, Bits())
