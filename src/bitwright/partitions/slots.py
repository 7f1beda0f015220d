"""A fixed number of entries in each row and block of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.groups import groups
from bitwright.partitions.salience import By, scores
from bitwright.protocols import ColumnStats

SLOTS = 4  # one byte of index and of value in each 32-bit lane of a vector


@dataclass(frozen=True)
class Slots:
    """The four most salient entries of every row in each `block` of 64 or 128 columns."""

    kind: ClassVar[str] = "slots"
    block: int = 64
    by: By = "hessian"

    def __post_init__(self) -> None:
        if self.block not in (64, 128):
            raise BadField(self, "block", self.block, "give 64 or 128")

    def split(self, w: Tensor, stats: ColumnStats) -> Tensor:
        """Bool [R, C]."""
        score = scores(w, stats, self.by)
        mask = torch.zeros_like(w, dtype=torch.bool)
        for columns in groups(w.shape[1], self.block):
            part = score[:, columns]
            chosen = torch.sort(part, dim=1, descending=True, stable=True).indices[:, :SLOTS]
            mask[:, columns] = torch.zeros_like(part, dtype=torch.bool).scatter(1, chosen, True)
        return mask

    def count(self, shape: tuple[int, int]) -> int:
        """Entries that `split` selects."""
        widths = [int(c.stop) - int(c.start) for c in groups(shape[1], self.block)]
        return shape[0] * sum(min(SLOTS, width) for width in widths)


EXAMPLES = (Slots(), Slots(128, "magnitude"))
