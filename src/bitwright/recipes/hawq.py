"""HAWQ-V3's choice of bits (arXiv 2011.10680): an integer program over mean trace times squared weight change.

The trace is that of the Fisher information (the expected Hessian of a likelihood), exact where the paper draws
Hutchinson probes. Weights only, one scale a row, widths 2 to 8 instead of the paper's 4 and 8; integer-only inference
is not part of it. Stored bits a weight: width + 16 / columns.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, TABLES
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.gptq import caution
from bitwright.solvers.gptq import Gptq

WIDTHS = (2, 3, 4, 6, 8)

RECIPE = Recipe(
    "hawq",
    format=Integer(4, None, "symmetric", search=20),
    solver=Gptq(),
    embedding=Integer(8, 64, "symmetric"),
    embedding_solver=HEAD,
)
MENU = Menu(tuple(Integer(width, None, "symmetric", search=20) for width in WIDTHS), TABLES, score="trace")

__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
