"""Groups of columns and the parameters that belong to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters while solving. In one group each is float32 [R, 1] (shared by its columns) or [R, n] (one a
column); joined over a matrix they are [R, G] or [R, C]."""


def groups(columns: int, group: int | None) -> list[slice]:
    """The runs of columns that share parameters; the last one may be shorter."""
    step = columns if group is None else group
    return [slice(a, min(a + step, columns)) for a in range(0, columns, max(step, 1))]


def group_count(columns: int, group: int | None) -> int:
    """How many `groups` there are."""
    return min(columns, 1) if group is None else -(-columns // max(group, 1))


def columns_of(params: Params, columns: slice) -> Params:
    """Parameters of some columns of one group: [R, 1] is shared, [R, n] is cut."""
    return {k: v if v.shape[1] == 1 else v[:, columns] for k, v in params.items()}


def join(parts: Sequence[Params]) -> Params:
    """Parameters of all groups in order: shared ones become [R, G], per-column ones [R, C]."""
    return {k: torch.cat([p[k] for p in parts], dim=1) for k in parts[0]}


def per_column(params: Params, group: int | None, columns: int) -> Params:
    """Joined parameters spread to one a column, [R, C], or left [R, 1] where they are row-wide."""
    count = group_count(columns, group)

    def spread(v: Tensor) -> Tensor:
        if v.shape[1] == columns or v.shape[1] == 1 or group is None:
            return v
        assert v.shape[1] == count
        return v.repeat_interleave(group, dim=1)[:, :columns]

    return {k: spread(v) for k, v in params.items()}
