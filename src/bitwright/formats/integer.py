"""Integers of 1 to 8 bits with a scale a group, affine or symmetric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.formats._affine import AffineCodes, check_group
from bitwright.groups import Params


@dataclass(frozen=True)
class Integer(AffineCodes):
    """Codes 0 .. 2^width - 1 on an even grid.

    `grid` "affine" stores scale and min; "symmetric" has a level at zero (-2^(b-1) .. 2^(b-1) - 1, the scale's sign
    turns the longer side to the larger extreme); "midrise" is centred without a zero (+-1/2, +-3/2, ...).
    `search` narrowed ranges are tried against the weighted squared error, then refined by least squares; 0 is min-max.
    """

    kind: ClassVar[str] = "integer"
    bits_per_code: int = 4
    group: int | None = 64
    grid: Literal["affine", "symmetric", "midrise"] = "affine"
    search: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits_per_code <= 8:
            raise BadField(self, "bits_per_code", self.bits_per_code, "give 1 to 8")
        if self.grid == "symmetric" and self.bits_per_code == 1:
            raise BadField(self, "grid", self.grid, "one bit has no level at zero: give 'midrise' or 'affine'")
        if not 0 <= self.search <= 100:
            raise BadField(self, "search", self.search, "give 0 to 100 candidates")
        check_group(self, self.group, _layout.BLOCK)

    @property
    def levels(self) -> int:
        """2^bits."""
        return 1 << self.bits_per_code

    @property
    def offset(self) -> float | None:
        """None (stored mins) if affine."""
        return {"affine": None, "symmetric": -self.levels / 2, "midrise": -(self.levels - 1) / 2}[self.grid]

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Range of least weighted squared error among the candidates."""
        return _fit.search(w, importance, self.levels, self.offset, self.search)


EXAMPLES = (
    *(Integer(b, 64) for b in (2, 3, 4, 8)),
    Integer(1, 32),
    Integer(5, None, "symmetric"),
    Integer(6, 128, "symmetric", search=10),
    Integer(7, 128),
    Integer(2, 64, "midrise", search=10),
    Integer(3, 256, search=5),
)
