"""SmoothQuant (arXiv 2211.10438): 8-bit weights, and 8-bit activations whose ranges were partly moved into the weights.

Activations are 8 bits in every packed model here, with a scale for every 128 columns of a token instead of one a token,
so that little is left to smooth: see docs/quality.md for what it brings. One scale a row, as there.
Stored bits a weight: 8 + 16 / columns.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Recipe
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.rtn import caution
from bitwright.solvers.rtn import Rtn
from bitwright.transforms.smoothquant import SmoothQuant

RECIPE = Recipe(
    "smoothquant",
    format=Integer(8, None, "symmetric"),
    solver=Rtn(),
    transforms=(SmoothQuant(),),
    embedding=Integer(8, 64, "symmetric"),
)

__all__ = ["RECIPE", "at_bits", "caution"]
