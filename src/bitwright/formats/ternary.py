"""{-1, 0, 1} times a scale, two bits a code or five codes a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bitwright.formats import _fit, _layout
from bitwright.formats._affine import AffineCodes, check_group
from bitwright.groups import Params


@dataclass(frozen=True)
class Ternary(AffineCodes):
    """Ternary codes; `packing` "base3" stores 1.6 bits a code and wants groups of a multiple of 20 columns or a row.

    `search` scales below the largest weight are tried, then refined by least squares; 0 takes mean |w| (BitNet b1.58,
    arXiv 2402.17764, equation 3).
    """

    kind: ClassVar[str] = "ternary"
    group: int | None = 64
    packing: Literal["plane", "base3"] = "plane"
    search: int = 20

    def __post_init__(self) -> None:
        check_group(self, self.group, _layout.BASE3_COLUMNS if self.packing == "base3" else _layout.BLOCK)

    @property
    def levels(self) -> int:
        """Three."""
        return 3

    @property
    def width(self) -> int | str:
        """2, or "base3"."""
        return 2 if self.packing == "plane" else "base3"

    @property
    def offset(self) -> float | None:
        """Code 1 is zero."""
        return -1.0

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """The searched scale, or mean |w| over the counted entries."""
        if self.search:
            return _fit.search(w, importance, 3, -1.0, self.search, rounds=4)
        counted = (importance > 0).expand_as(w)
        count = counted.sum(1, keepdim=True).clamp(min=1)
        return _fit.affine((w.abs() * counted).sum(1, keepdim=True) / count, None, -1.0)


EXAMPLES = (Ternary(), Ternary(None, "base3"), Ternary(80, "base3", search=0), Ternary(128, search=0))
