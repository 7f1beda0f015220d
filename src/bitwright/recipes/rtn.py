"""Round to nearest: no data, no compensation; the baseline that every method has to beat.

Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Recipe
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.solvers.rtn import Rtn

RECIPE = Recipe("rtn", format=Integer(4, 64), solver=Rtn(), embedding=Integer(8, 64, "symmetric"))


def caution(recipe: Recipe) -> str | None:
    """Rounding alone is of no use below 3 bits."""
    if not isinstance(recipe.format, Integer) or recipe.format.bits_per_code > 2:
        return None
    return (
        "Rounding to nearest at 2 bits leaves nothing of a model (SmolLM2-135M, WikiText-2: perplexity 650446, float "
        "20): use gptq."
    )


__all__ = ["RECIPE", "at_bits", "caution"]
