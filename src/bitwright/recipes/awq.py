"""AWQ (arXiv 2306.00978): the inputs that see large activations are scaled up, then everything is rounded to nearest.

The scales fold into norms and the linears before; their exponent is searched for every site (`transforms/awq.py`), then
ranges are clipped by search under the Hessian's diagonal. Four bits in groups of 128, as there.
Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.recipe import Recipe
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.rtn import caution
from bitwright.solvers.rtn import Rtn
from bitwright.transforms.awq import Awq

RECIPE = Recipe(
    "awq",
    format=Integer(4, 128, search=20),
    solver=Rtn(weighted=True),
    transforms=(Awq(),),
    embedding=Integer(8, 64, "symmetric"),
)

__all__ = ["RECIPE", "at_bits", "caution"]
