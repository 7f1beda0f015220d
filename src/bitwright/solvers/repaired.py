"""Scale repair: every output is as large as it was, on the mean over calibration; codes stay what they are.

AdaQuant's re-estimated statistics (arXiv 2006.10518, para-normalization) for models without batch norm: there the
deviation of each channel is restored, here its root mean square, since most layers have no bias to hold a mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.groups import Params, per_column
from bitwright.linalg import Hessian
from bitwright.protocols import Format, QTensor, Solver
from bitwright.solvers.gptq import Gptq
from bitwright.turned import as_coded


@dataclass(frozen=True)
class Repaired:
    """What `each` finds, its scales multiplied row by row; rows that rounding to f16 brings no nearer stay."""

    kind: ClassVar[str] = "repaired"
    needs_hessian: ClassVar[bool] = True
    each: Solver = field(default_factory=Gptq)

    @as_coded
    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """Without statistics just what `each` finds."""
        q = self.each.solve(w, fmt, hessian)
        if hessian is None:
            return q
        codes, params = fmt.unpack(q.planes, q.shape)

        def energy(own: Params) -> Tensor:
            decoded = fmt.decode(codes, per_column(own, fmt.group, q.shape[1]))
            return ((decoded @ hessian.matrix) * decoded).sum(1, keepdim=True)

        wanted, before = ((w @ hessian.matrix) * w).sum(1, keepdim=True), energy(params)
        gain = torch.where(before > 0, wanted / before, 1.0).clamp(min=0).sqrt()
        # Parameters that rows share cannot be changed for one of them.
        moved = {name: params[name] * gain for name in fmt.continuous if len(params[name]) == len(w)}
        repaired = fmt.stored(params | moved)
        better = (energy(repaired) - wanted).abs() < (before - wanted).abs()
        kept = {k: torch.where(better[: len(v)], v, params[k]) if len(v) == len(w) else v for k, v in repaired.items()}
        return QTensor(fmt, q.shape, fmt.pack(codes, kept))
