"""AutoRound (SignRound, arXiv 2309.05516): each block learns which way to round its weights, and their ranges.

The offset of a weight within its step of the grid and the scales follow the sign of the gradient of the block's squared
output error, at a rate that falls to 0 (200 steps of 8 sequences there, 100 of 4 here). The inputs come from the blocks
quantized before; ranges begin as searched for the format, and the best of start and end is kept.
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
    "autoround",
    format=Integer(3, 64, search=20),
    solver=Rtn(weighted=True),
    refiner=Reconstruct(),
    embedding=Integer(8, 64, "symmetric"),
)

__all__ = ["RECIPE", "at_bits", "caution"]
