"""BAQ (arXiv 2506.05664): bits by the loss model c 4^-bits, c = sum over rows and columns of range^2 / (24 u^2).

u is the diagonal of GPTQ's Cholesky factor. The paper gives bits to the columns of a layer; here whole linears get
them, as packed columns of different widths would not run fast. Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, TABLES
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.gptq import caution
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe(
    "baq", format=Integer(3, 64, search=20), solver=Gptq(), embedding=Integer(8, 64, "symmetric"), embedding_solver=HEAD
)
MENU = Menu(tuple(Integer(width, 64, search=20) for width in (2, 3, 4, 5, 6, 8)), TABLES, score="baq")

__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
