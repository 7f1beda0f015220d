"""OmniQuant (arXiv 2308.13137): the ranges of all groups of a block are learned on the block's output, by Adam.

That is its learned weight clipping (equation 2), which its weight-only runs use alone; the learned transformation is
for quantized activations. Here scale and min move freely, not by two factors below 1, and start as searched for.
Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Recipe
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.gptq import caution
from bitwright.solvers.reconstruct import Reconstruct
from bitwright.solvers.rtn import Rtn

RECIPE = Recipe(
    "omniquant",
    format=Integer(3, 64, search=20),
    solver=Rtn(weighted=True),
    refiner=Reconstruct(reach=0.0, signed=False),
    embedding=Integer(8, 64, "symmetric"),
)

__all__ = ["RECIPE", "at_bits", "caution"]
