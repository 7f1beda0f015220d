"""BitStack (arXiv 2410.23918): stacks of sign planes, any prefix of the file a model; bits are chosen when it is run.

W = sum over blocks of sign * (row scale x column scale); each block is the best for what those before it left over.
The paper rounds each block under activation norms (`--set 'solver.each={"kind":"rtn","weighted":true}'`) and has 16
vectors a block (`format.rank`); here errors are compensated under the Hessian, and one vector a block buys more for
its bytes and is one term of a kernel.
Stored bits a weight: blocks * (1 + 16 rank / rows + 16 rank / columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bitwright.errors import Refused, TooFewBits
from bitwright.formats.integer import Integer
from bitwright.formats.stack import MOST, TERMS, Stack
from bitwright.protocols import Recipe
from bitwright.recipes._bits import stored_bits
from bitwright.solvers.successive import Successive

# Six bits for embedding and head: every prefix holds them whole.
RECIPE = Recipe(
    "bit-stack",
    format=Stack(),
    solver=Successive(),
    embedding=Integer(6, 64, "symmetric", search=20),
    propagate=False,
)


def at_bits(recipe: Recipe, bits: float, shapes: Sequence[tuple[int, int]]) -> Recipe:
    """The most blocks that store at most `bits`: how far the file can go."""
    base = recipe.format
    if not isinstance(base, Stack):
        raise Refused("--bits chooses a number of blocks: leave it out, or leave format as it is.")
    each = stored_bits(base.prefix(1), shapes)
    most = min(MOST, TERMS // base.rank)
    if bits < each - 1e-9:
        raise TooFewBits(
            f"{bits} bits are too few for {recipe.name}: it stores at least {each:.3f} here, give that or more."
        )
    if bits > most * each + 1e-9:
        raise Refused(f"{bits} bits are more than {recipe.name} can use: it stores at most {most * each:.3f} here.")
    return replace(recipe, format=base.prefix(int(bits / each + 1e-9)))


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None
