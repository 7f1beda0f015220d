"""Layer-Wise Quantization (arXiv 2406.17415): whole blocks at one of two widths, the important ones at the larger.

Importance is how much a block turns its input (LIM, negative cosine of what enters and leaves), or with `--score zd`
how few of its weights lie above one standard deviation (ZD). With `--target-size` or `--target-bpw` blocks move from
2 to 4 bits, then from 4 to 8, in that order. Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, TABLES
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.gptq import caution
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe(
    "layerwise",
    format=Integer(4, 64, search=20),
    solver=Gptq(),
    embedding=Integer(8, 64, "symmetric"),
    embedding_solver=HEAD,
)
MENU = Menu(tuple(Integer(width, 64, search=20) for width in (2, 4, 8)), TABLES, score="lim", rank=True)

__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
