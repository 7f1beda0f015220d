"""GPTQ (arXiv 2210.17323): integers chosen column by column, each error compensated by the columns to come.

Ranges are searched under the Hessian diagonal and refined by least squares when the solver reaches a group.
Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.protocols import Recipe
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe("gptq", format=Integer(3, 64, search=20), solver=Gptq(), embedding=Integer(8, 64, "symmetric"))


def caution(recipe: Recipe) -> str | None:
    """None yet."""
    return None


__all__ = ["RECIPE", "at_bits", "caution"]
