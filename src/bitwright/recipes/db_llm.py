"""DB-LLM (arXiv 2402.11960): two planes of {0, 1} with two free scales a group, without its training.

Flexible dual binarization starts from the grid {-s, 0, s, 2 s} or its mirror image, whichever fits better, and frees
both scales; here they are found by alternating least squares and by descent under the Hessian.
Weights also make up for half of what inputs have lost (drift=0 leaves it out).
Stored bits a weight: 2 + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.residual import Residual
from bitwright.learning import Learning
from bitwright.recipe import Recipe
from bitwright.recipes._bits import residual_at as at_bits
from bitwright.solvers.descent import Descent

RECIPE = Recipe(
    "db-llm",
    format=Residual(2, 64, rounds=3, values="bit"),
    solver=Descent(),
    drift=0.5,
    embedding=Integer(8, 64, "symmetric"),
)

TRAINING = Learning(rate=0.01, parameter_rate=0.01, vector_rate=5e-3, ambiguity=1.0)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None


__all__ = ["RECIPE", "TRAINING", "at_bits", "caution"]
