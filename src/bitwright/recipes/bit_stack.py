"""BitStack (arXiv 2410.23918): stacks of sign planes, any prefix of the file a model; bits are chosen when it is run.

W = sum over blocks of sign * (row scale x column scale); each block is the best for what those before it left over.
The paper rounds each block under activation norms (`--set 'solver.each={"kind":"rtn","weighted":true}'`) and has 16
vectors a block (`format.rank`); here errors are compensated under the Hessian, and one vector a block buys more for
its bytes and is one term of a kernel.
Stored bits a weight: blocks * (1 + 16 rank / rows + 16 rank / columns).
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.stack import MOST, TERMS, Stack
from bitwright.recipe import Recipe
from bitwright.recipes._bits import Shapes, blocks_at
from bitwright.solvers.successive import Successive

# Six bits for embedding and head: every prefix holds them whole.
RECIPE = Recipe(
    "bit-stack",
    format=Stack(),
    solver=Successive(),
    embedding=Integer(6, 64, "symmetric", search=20),
    propagate=False,
)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The most blocks that store at most `bits`: how far the file can go."""
    most = min(MOST, TERMS // recipe.format.rank) if isinstance(recipe.format, Stack) else MOST
    return blocks_at(recipe, bits, shapes, most)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None
