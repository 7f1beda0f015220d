"""MoEQuant (arXiv 2505.03804): GPTQ whose Hessians of experts weigh tokens by their affinity.

The weight c_t of a token is the routing weight that the expert's output is multiplied by, H = 2 sum c_t x_t x_t^T.
Without `--data` the model writes its calibration text by a beam search that also counts how unevenly experts are used
(EBSS; `balance` is 1 / tau).
One scale a row, as there; without its rotation. Without experts it is GPTQ without drift. Stored bits a weight: width +
16 / columns.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, INTEGERS, TABLES
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.gptq import caution
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe(
    "moequant",
    format=Integer(4, None, "symmetric", search=20),
    solver=Gptq(),
    embedding=Integer(8, 64, "symmetric"),
    embedding_solver=HEAD,
    affinity=1.0,
    balance=1 / 1.2,
)
MENU = Menu(INTEGERS, TABLES)

__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
