"""GPTQ (arXiv 2210.17323): column by column, each error pushed into the columns still to come.

Columns that a format codes jointly are one step of the loop (block LDLQ, QuIP#, arXiv 2402.04396): the format sees the
metric inside the step, the loop compensates behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.groups import Params, columns_of, groups, join
from bitwright.linalg import Hessian
from bitwright.protocols import ColumnStats, Format, QTensor
from bitwright.turned import as_coded


@dataclass(frozen=True)
class Gptq:
    """One loop for every format. `damping` is relative to the mean diagonal of the Hessian.

    `weighted`: parameters are fitted under the curvature of each column given those before it, else all weigh the same.
    `block` columns are corrected at once (whole steps); it changes speed, not the result.
    """

    kind: ClassVar[str] = "gptq"
    needs_hessian: ClassVar[bool] = True
    damping: float = 0.01
    weighted: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise BadField(self, "damping", self.damping, "give a positive share of the mean diagonal, 0.01 say")
        if self.block < 1:
            raise BadField(self, "block", self.block, "give a positive number of columns")

    @as_coded
    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """Codes that keep the layer's output; without statistics all inputs count alike and none are correlated."""
        h = hessian or Hessian(torch.eye(w.shape[1]), 0)
        u = h.factor(self.damping)
        dead = h.diagonal == 0
        # Dead inputs must not vanish from a fit that has nothing else to go by.
        floor = 1e-4 * h.diagonal.mean() if not bool(dead.all()) else 1.0
        stats = ColumnStats(h.diagonal + floor, u.diagonal().float())
        codes, params, _ = gptq(w.masked_fill(dead, 0.0), u.to(w.dtype), fmt, stats, self.block, self.weighted)
        return QTensor(fmt, (w.shape[0], w.shape[1]), fmt.pack(codes, params))


def gptq(
    w: Tensor, u: Tensor, fmt: Format, stats: ColumnStats, block: int = 128, weighted: bool = True
) -> tuple[Tensor, Params, Tensor]:
    """Codes int32 [R, C], joined parameters and scaled errors E [R, C] of one matrix.

    `u` [C, C] upper triangular, inverse(H) = u^T u, in the type of `w`. Afterwards W - Q = E U, so that
    sum E^2 = tr((W - Q) H (W - Q)^T) for any format and block.
    """
    rows, columns = w.shape
    block = max(block // fmt.step, 1) * fmt.step
    prior = fmt.prepare(w, stats)
    # What an error costs that all columns to come compensate: 1 / u^2; dead inputs have it from `stats.h`.
    importance = torch.minimum(stats.u**-2, stats.h) if weighted else torch.ones_like(stats.h)
    rest = w.t().contiguous().clone()  # [C, R]: one column of W is one contiguous row
    codes = torch.empty(columns, rows, dtype=torch.int32)
    errors = torch.empty_like(rest)
    fitted = []
    for group in groups(columns, fmt.group):
        params = fmt.fit(rest[group].t(), importance[None, group], columns_of(prior, group))
        fitted.append(params)
        for start in range(group.start, group.stop, block):
            stop = min(start + block, group.stop)
            for first in range(start, stop, fmt.step):
                here = slice(first, min(first + fmt.step, stop))
                own = columns_of(params, slice(here.start - group.start, here.stop - group.start))
                now, metric = rest[here].t(), u[here, here]
                code = fmt.encode(now, own, u=metric)
                codes[here] = code.t()
                error = _errors(now - fmt.decode(code, own).to(w.dtype), metric)
                errors[here] = error.t()
                rest[here.stop : stop].addmm_(u[here, here.stop : stop].t(), errors[here], alpha=-1)
            rest[stop:].addmm_(u[start:stop, stop:].t(), errors[start:stop], alpha=-1)
    return codes.t(), join(fitted), errors.t()


def _errors(difference: Tensor, u: Tensor) -> Tensor:
    """E [R, n] with E u = difference."""
    if len(u) == 1:
        return difference / u
    errors: Tensor = torch.linalg.solve_triangular(u, difference, upper=True, left=False)
    return errors
