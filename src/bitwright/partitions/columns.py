"""Whole input columns: a mask of one bit a column (PTQ1.61, arXiv 2502.13179, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.partitions.salience import scores
from bitwright.protocols import ColumnStats


@dataclass(frozen=True)
class Columns:
    """A `share` of the columns, the same for all rows; ties go to the earlier column.

    `by` "activation": those of the largest mean square input; "hessian": of the largest sum of w^2 / u^2 (BiLLM).
    """

    kind: ClassVar[str] = "columns"
    share: float = 0.2
    by: Literal["activation", "hessian"] = "activation"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise BadField(self, "share", self.share, "give a share between 0 and 1")

    def split(self, w: Tensor, stats: ColumnStats) -> Tensor:
        """Bool [R, C], all rows alike."""
        score = stats.h if self.by == "activation" else scores(w, stats, "hessian").sum(0)
        chosen = torch.sort(score, descending=True, stable=True).indices[: self._count(w.shape[1])]
        mask = torch.zeros(w.shape[1], dtype=torch.bool)
        mask[chosen] = True
        return mask.expand(w.shape).clone()

    def count(self, shape: tuple[int, int]) -> int:
        """Entries that `split` selects."""
        return shape[0] * self._count(shape[1])

    def _count(self, columns: int) -> int:
        return round(self.share * columns)


EXAMPLES = (Columns(), Columns(0.1, "hessian"))
