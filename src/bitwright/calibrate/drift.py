"""Targets that make up for what the inputs of a layer have lost (asymmetric calibration: GPTAQ, arXiv 2504.02692).

With x the inputs of a layer in the float model, y those that quantized layers give it instead, W x is what a weight W
is meant to put out, and only y is there to put it out from: least sum |W x - Q y|^2. But for a constant that is
sum |(W' - Q) y|^2 with W' = W + W (sum (x - y) y^T) (sum y y^T)^-1, which any solver can follow.
"""

from __future__ import annotations

from torch import Tensor

from bitwright.calibrate.observe import MASSIVE
from bitwright.linalg import Hessian

DAMPING = 0.1  # relative, as in solvers: what few tokens say of a direction is not followed far


def drift(x: Tensor, y: Tensor) -> Tensor:
    """Sum of (x - y) y^T, float32 [C, C], of inputs [..., C].

    Tokens of massive activation count as if nothing had happened to them: one alone would decide for all others.
    """
    x, y = (of.reshape(-1, of.shape[-1]).float() for of in (x, y))
    energy = y.square().sum(1, keepdim=True)
    ordinary = energy <= MASSIVE * energy.median() if len(y) else energy > 0
    return ((x - y) * ordinary).t() @ y


def made_up(w: Tensor, moved: Tensor, h: Hessian, share: float, damping: float = DAMPING) -> Tensor:
    """W' for a weight [R, C], or so much of the way there; `h` is of y, `moved` the sum of drifts on its scale."""
    u = h.factor(damping).to(w.dtype)
    return w + share * (w @ moved) @ u.t() @ u
