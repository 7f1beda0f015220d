"""Formats that code a weight for changed inputs, and solvers that never notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from bitwright.linalg import Hessian
from bitwright.protocols import Format, QTensor


@runtime_checkable
class Turned(Format, Protocol):
    """A format whose codes are those of another one, of the weight for changed inputs.

    Its own `fit`, `encode` and `decode` take whole rows.
    """

    @property
    def inner(self) -> Format:
        """The other one."""
        ...

    def turned(self, w: Tensor) -> Tensor:
        """The weight [R, C] that `inner` codes."""
        ...

    def restored(self, w: Tensor) -> Tensor:
        """Inverse of `turned`, differentiable."""
        ...

    def seen(self, hessian: Hessian) -> Hessian:
        """That of the changed inputs."""
        ...

    def seen_diagonal(self, h: Tensor) -> Tensor:
        """Diagonal of the Hessian of the changed inputs, where that of the inputs is a diagonal [C]."""
        ...


S = TypeVar("S")
Solve = Callable[[S, Tensor, Format, Hessian | None], QTensor]


def as_coded(solve: Solve[S]) -> Solve[S]:
    """A `solve` that sees the weight and its inputs as the codes of a format do."""

    @wraps(solve)
    def whole(self: S, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        if not isinstance(fmt, Turned):
            return solve(self, w, fmt, hessian)
        if hessian is not None:  # what never fires must not get into the weights of what does
            w = w.masked_fill(hessian.diagonal == 0, 0.0)
        found = whole(self, fmt.turned(w), fmt.inner, None if hessian is None else fmt.seen(hessian))
        return QTensor(fmt, found.shape, found.planes)

    return whole
