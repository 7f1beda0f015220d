"""The largest entries of a matrix by magnitude or by Hessian salience (PB-LLM, arXiv 2310.00034, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.groups import groups
from bitwright.protocols import ColumnStats

By = Literal["hessian", "magnitude"]


def scores(w: Tensor, stats: ColumnStats, by: By) -> Tensor:
    """|w|, or w^2 / U_jj^2: twice the rise of the loss if the entry were dropped."""
    return w.abs() if by == "magnitude" else (w / stats.u.to(w.dtype)) ** 2


@dataclass(frozen=True)
class Salience:
    """A `share` of all entries, over whole rows or in each `group` of columns; ties go to the earlier entry.

    `scope` "matrix": one threshold for all rows, so that rows compete; "row": the same number in every row.
    """

    kind: ClassVar[str] = "salience"
    share: float = 0.3
    by: By = "hessian"
    group: int | None = None
    scope: Literal["matrix", "row"] = "matrix"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise BadField(self, "share", self.share, "give a share between 0 and 1")
        if self.group is not None and self.group < 1:
            raise BadField(self, "group", self.group, "give a positive number of columns, or none for whole rows")

    def split(self, w: Tensor, stats: ColumnStats) -> Tensor:
        """Bool [R, C]."""
        score = scores(w, stats, self.by)
        mask = torch.zeros_like(w, dtype=torch.bool)
        for columns in groups(w.shape[1], self.group):
            part = score[:, columns]
            rivals = part.reshape(1, -1) if self.scope == "matrix" else part  # one line of them a threshold
            chosen = torch.sort(rivals, dim=1, descending=True, stable=True).indices[:, : self._count(rivals.shape[1])]
            found = torch.zeros_like(rivals, dtype=torch.bool).scatter(1, chosen, True)
            mask[:, columns] = found.view(part.shape)
        return mask

    def count(self, shape: tuple[int, int]) -> int:
        """Entries that `split` selects."""
        widths = [int(c.stop) - int(c.start) for c in groups(shape[1], self.group)]
        if self.scope == "row":
            return shape[0] * sum(self._count(width) for width in widths)
        return sum(self._count(shape[0] * width) for width in widths)

    def _count(self, entries: int) -> int:
        return round(self.share * entries)


EXAMPLES = (Salience(0.3), Salience(0.05, "magnitude"), Salience(0.1, "hessian", 64), Salience(0.2, scope="row"))
