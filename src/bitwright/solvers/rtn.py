"""Round to nearest: every group on its own, no compensation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.groups import Params, columns_of, groups, join
from bitwright.linalg import Hessian
from bitwright.protocols import ColumnStats, Format, QTensor
from bitwright.turned import as_coded


@dataclass(frozen=True)
class Rtn:
    """Fits each group to the weights it has. With a Hessian, columns count by its diagonal if `weighted`."""

    kind: ClassVar[str] = "rtn"
    weighted: bool = False

    @property
    def needs_hessian(self) -> bool:
        """Where columns do not count alike."""
        return self.weighted

    @as_coded
    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """Nearest codes."""
        stats = ColumnStats.flat(w.shape[1]) if hessian is None else column_stats(hessian)
        codes, params = rounded(w, fmt, stats, self.weighted)
        return QTensor(fmt, (w.shape[0], w.shape[1]), fmt.pack(codes, params))


def rounded(w: Tensor, fmt: Format, stats: ColumnStats, weighted: bool) -> tuple[Tensor, Params]:
    """Codes int32 [R, C] and joined parameters; columns count by `stats.h` if `weighted`."""
    importance = stats.h if weighted else torch.ones_like(stats.h)
    prior = fmt.prepare(w, stats)
    codes, params = [], []
    for columns in groups(w.shape[1], fmt.group):
        params.append(fmt.fit(w[:, columns], importance[None, columns], columns_of(prior, columns)))
        codes.append(fmt.encode(w[:, columns], params[-1], importance[None, columns]))
    return torch.cat(codes, dim=1), join(params)


def column_stats(hessian: Hessian) -> ColumnStats:
    """Diagonals of the Hessian and of its inverse Cholesky factor."""
    return ColumnStats(hessian.diagonal, hessian.factor(0.01).diagonal().float())
