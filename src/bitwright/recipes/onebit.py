"""OneBit (arXiv 2402.11295): signs, a scale a row and a scale a column, as its training starts from them.

W ~ sign(W) * a b^T by alternating least squares (the paper's SVID, its section 3.3), then by descent under the Hessian.
It is also where BinaryMoS (arXiv 2406.12311) starts: all its scaling experts are copies of this pair. Both papers
train from here; the LayerNorm that OneBit adds behind every layer is of no use without training and is left out.
Stored bits a weight: 1 + 16 / rows + 16 / columns, and the same again for each further plane.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.residual import Residual
from bitwright.learning import Learning
from bitwright.recipe import Recipe
from bitwright.recipes._bits import residual_at as at_bits
from bitwright.solvers.descent import Descent

RECIPE = Recipe(
    "onebit",
    format=Residual(1, None, rounds=3, columns="shared"),
    solver=Descent(),
    embedding=Integer(8, 64, "symmetric"),
)

TRAINING = Learning(rate=0.02, parameter_rate=0.02, vector_rate=0.01, hidden=0.1)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None


__all__ = ["RECIPE", "TRAINING", "at_bits", "caution"]
