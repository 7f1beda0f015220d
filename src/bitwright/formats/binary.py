"""One bit a weight: mean plus or minus a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bitwright.formats import _fit, _layout
from bitwright.formats._affine import AffineCodes, check_group
from bitwright.groups import Params


@dataclass(frozen=True)
class Binary(AffineCodes):
    """{mean - a, mean + a} a group, or {-a, a} without `mean`; a is the weighted mean of |w - mean|.

    For fixed signs that a is the least-squares one (XNOR-Net, arXiv 1603.05279, equation 6).
    """

    kind: ClassVar[str] = "binary"
    group: int | None = None
    mean: bool = True

    def __post_init__(self) -> None:
        check_group(self, self.group, _layout.BLOCK)

    @property
    def levels(self) -> int:
        """Two."""
        return 2

    @property
    def offset(self) -> float | None:
        """-1/2 of the step 2a without a mean."""
        return None if self.mean else -0.5

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Weighted mean and weighted mean deviation."""
        weight = importance.expand_as(w)
        count = weight.sum(1, keepdim=True)
        count = count + (count == 0)  # a row without counted entries gets scale 0, min 0
        mean = (weight * w).sum(1, keepdim=True) / count if self.mean else 0.0
        a = (weight * (w - mean).abs()).sum(1, keepdim=True) / count
        return _fit.affine(2 * a, mean - a if self.mean else None, -0.5)


EXAMPLES = (Binary(), Binary(mean=False), Binary(128), Binary(64, mean=False))
