"""Block after block: each is the best that another solver finds for what the blocks before it left over.

So the first blocks of a weight do not depend on those behind them, and every prefix is a weight of its own
(BitStack, arXiv 2410.23918, there with rounding to nearest for `each`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from bitwright.linalg import Hessian
from bitwright.protocols import Additive, Format, Planes, QTensor, Solver
from bitwright.solvers.descent import Descent
from bitwright.turned import as_coded


@dataclass(frozen=True)
class Successive:
    """Formats that are no sums of blocks are solved by `each` as they are."""

    kind: ClassVar[str] = "successive"
    needs_hessian: ClassVar[bool] = True
    each: Solver = field(default_factory=lambda: Descent(sweeps=1))

    @as_coded
    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """The residual of every block is that of the stored ones before it."""
        if not isinstance(fmt, Additive):
            return self.each.solve(w, fmt, hessian)
        planes: Planes = {}
        rest = w
        for block in range(fmt.blocks):
            q = self.each.solve(rest, fmt.prefix(1), hessian)
            planes |= {name: q.planes[role] for role, name in fmt.roles(block).items()}
            rest = rest - q.dequantize()
        return QTensor(fmt, (w.shape[0], w.shape[1]), planes)
