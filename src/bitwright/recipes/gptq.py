"""GPTQ (arXiv 2210.17323): integers chosen column by column, each error compensated by the columns to come.

Ranges are searched under the Hessian diagonal and refined by least squares when the solver reaches a group. Half of
what the inputs of a layer have lost is made up for by its weights (GPTAQ, arXiv 2504.02692): without that (drift=0)
SmolLM2-135M has perplexity 34 instead of 29 at 3 bits.
Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.ternary import Ternary
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, INTEGERS, TABLES
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe(
    "gptq",
    format=Integer(3, 64, search=20),
    solver=Gptq(),
    drift=0.5,
    embedding=Integer(8, 64, "symmetric"),
    embedding_solver=HEAD,
)

MENU = Menu((*INTEGERS, Ternary(160, "base3"), Binary(64)), TABLES, reference=Integer(3, 64, search=20))


def caution(recipe: Recipe) -> str | None:
    """Even grids end at 3 bits."""
    if not isinstance(recipe.format, Integer) or recipe.format.bits_per_code > 2:
        return None
    return (
        f"An even grid of {recipe.format.bits_per_code} bits loses much of a small model (SmolLM2-135M, WikiText-2, "
        "GPTQ: perplexity 112 at 2 bits, 218 without drift; 29 and 34 at 3; float 20): use 3 bits or more."
    )


__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
