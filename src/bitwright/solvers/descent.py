"""Coordinate descent on the layer's output error: scales and codes in turn, from another solver's solution.

The error tr(D H D^T), D = W - Q, is lowered exactly in every step: the scales of one group by least squares given all
other weights, then each code of the group given all others. ARB-X of ARB-LLM (arXiv 2410.03129, section 3.3) is its
first half within one group; coordinate descent over codes is that of CDQuant (arXiv 2406.17542).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.groups import Params, columns_of, groups, join, per_column
from bitwright.linalg import Hessian, inverse_factor
from bitwright.protocols import ColumnStats, Format, QTensor, Solver
from bitwright.solvers.gptq import Gptq
from bitwright.turned import as_coded

RIDGE = 1e-6  # of normal equations, relative to their diagonal


@dataclass(frozen=True)
class Descent:
    """`sweeps` over all columns; `damping` as in GPTQ. Parameters that a format chose in `prepare` stay."""

    kind: ClassVar[str] = "descent"
    needs_hessian: ClassVar[bool] = True
    start: Solver = field(default_factory=Gptq)
    sweeps: int = 2
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.sweeps <= 1000:
            raise BadField(self, "sweeps", self.sweeps, "give 0 to 1000")
        if not self.damping > 0:
            raise BadField(self, "damping", self.damping, "give a positive share of the mean diagonal, 0.01 say")

    @as_coded
    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """What `start` finds, improved; without statistics just what `start` finds."""
        q = self.start.solve(w, fmt, hessian)
        if hessian is None or self.sweeps == 0:
            return q
        codes, params = fmt.unpack(q.planes, q.shape)
        work = _Sweep(w.masked_fill(hessian.diagonal == 0, 0.0), fmt, hessian.damped(self.damping), codes, params)
        for _ in range(self.sweeps):
            work.sweep()
        return QTensor(fmt, q.shape, fmt.pack(work.codes, join(work.params)))


class _Sweep:
    """The state of a descent: codes [R, C], parameters by group, and D = W - Q."""

    def __init__(self, w: Tensor, fmt: Format, h: Tensor, codes: Tensor, params: Params) -> None:
        self.w, self.fmt, self.h, self.codes = w, fmt, h, codes
        self.groups = groups(w.shape[1], fmt.group)
        self.params = [_of_group(params, g, columns, w.shape[1]) for g, columns in enumerate(self.groups)]
        chosen = fmt.prepare(w[:1], ColumnStats.flat(w.shape[1]))
        self.free = [name for name in fmt.continuous if name not in chosen and self.params[0][name].shape[1] == 1]
        self.rest = w - fmt.decode(codes, per_column(params, fmt.group, w.shape[1]))

    def sweep(self) -> None:
        """Every group once."""
        for g, columns in enumerate(self.groups):
            self._scales(g, columns)
            self._codes(g, columns)

    def _scales(self, g: int, columns: slice) -> None:
        """The step of least error of the group's scales, for rows that it helps after rounding to f16."""
        codes, params, h = self.codes[:, columns], self.params[g], self.h[columns, columns]
        zero = params | {name: torch.zeros_like(params[name]) for name in self.free}
        units = (zero | {name: torch.ones_like(params[name])} for name in self.free)
        fixed = self.fmt.decode(codes, self.fmt.stored(zero))
        basis = torch.stack([self.fmt.decode(codes, self.fmt.stored(unit)) - fixed for unit in units])
        slope = self.rest @ self.h[:, columns]
        gram = torch.einsum("prn,qrn->rpq", basis @ h, basis)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        ridge = RIDGE * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
        right = torch.einsum("prn,rn->rp", basis, slope).unsqueeze(2)
        step = torch.linalg.solve(gram + torch.diag_embed(ridge.expand_as(diagonal)), right).squeeze(2)
        moved = {name: params[name] + step[:, i : i + 1] for i, name in enumerate(self.free)}
        trial = self.fmt.stored(params | moved)
        change = self.w[:, columns] - self.fmt.decode(codes, trial) - self.rest[:, columns]
        gain = -(change * (2 * slope + change @ h)).sum(1, keepdim=True)
        better = gain > 0  # False where it is not finite
        self.params[g] = {
            k: torch.where(better, trial[k], v) if len(v) == len(better) else v for k, v in params.items()
        }
        self.rest[:, columns] += torch.where(better, change, 0.0)

    def _codes(self, g: int, columns: slice) -> None:
        """Step by step (a column, or those coded jointly) the codes nearest to what all others leave to be done."""
        h, params = self.h[columns, columns], self.params[g]
        slope = (self.rest @ self.h[:, columns]).t().contiguous()
        rest = self.rest[:, columns].t().contiguous()
        target = self.w[:, columns].t()
        for first in range(0, len(rest), self.fmt.step):
            here = slice(first, min(first + self.fmt.step, len(rest)))
            block = h[here, here]
            if bool((block.diagonal() == 0).any()):
                continue
            own = columns_of(params, here)
            u = inverse_factor(block)
            wanted = target[here] - rest[here] + u.t() @ (u @ slope[here])
            code = self.fmt.encode(wanted.t(), own, u=u)
            change = target[here] - self.fmt.decode(code, own).t() - rest[here]
            better = (change * (2 * slope[here] + block @ change)).sum(0) < 0
            change = torch.where(better, change, 0.0)
            slope.addmm_(h[:, here], change)
            rest[here] += change
            old = self.codes[:, columns][:, here]
            old.copy_(torch.where(better[:, None], code, old))
        self.rest[:, columns] = rest.t()


def _of_group(params: Params, g: int, columns: slice, total: int) -> Params:
    """One group's share of joined parameters: those of a row, of a row and group, or of every column."""

    def share(v: Tensor) -> Tensor:
        if v.shape[1] == 1:
            return v
        return v[:, columns] if v.shape[1] == total else v[:, g : g + 1]

    return {k: share(v) for k, v in params.items()}
