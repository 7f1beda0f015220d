"""BinaryMoS (arXiv 2406.12311): OneBit whose scales every token mixes from four experts by a router in each layer.

The signs are shared, so experts cost little. The first expert is OneBit's pair of scales without training; the others
begin as its equals, behind a random router, and part in training (`bitwright train`). The scales of the first expert
are taken out of all of them, and its routing logit is 0: the same models, 16 / rows bits less than the paper's.
Stored bits a weight: 1 + experts * 16 / rows + experts * 16 / columns + (experts - 1) * 16 / rows.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.mixture import Mixture
from bitwright.formats.residual import Residual
from bitwright.learning import Learning
from bitwright.recipe import Recipe
from bitwright.recipes._bits import residual_at as at_bits
from bitwright.solvers.descent import Descent

RECIPE = Recipe(
    "binary-mos",
    format=Mixture(Residual(1, None, rounds=3, columns="shared")),
    solver=Descent(),
    embedding=Integer(8, 64, "symmetric"),
)

TRAINING = Learning(rate=0.02, parameter_rate=0.02, vector_rate=0.01, hidden=0.1)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None


__all__ = ["RECIPE", "TRAINING", "at_bits", "caution"]
