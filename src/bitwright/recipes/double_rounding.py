"""Double Rounding (arXiv 2502.01199): nested integers, one file that can be read at 2, 3, 4, 6 and 8 bits.

The high bits of an 8-bit code are a code of their own, with the same scale times a power of two. The file holds the
bits in blocks by significance and can be read as far as a budget goes (`--budget`); each layer has a width of its own
there, the sensitive ones more. In place of the paper's Hessian trace (HASB) and integer program, blocks are ordered by
what they lower the predicted divergence by for their bytes, which gives a choice for every size at once.
`--set 'format.blocks_of_bits=[4,2,2]'` offers other widths.
The paper trains all widths together. Here nothing is trained: errors are compensated at 8 bits (GPTQ), and scales have
the least sum of root mean square errors at all widths; at 2 bits that leaves several times the error of an own grid.
`--set 'solver={"kind":"adaquant"}'` lowers the errors of all widths together, more slowly.
Stored bits a weight: width + 16 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.nested import Nested
from bitwright.protocols import Elastic
from bitwright.recipe import Recipe
from bitwright.recipes._bits import Shapes, blocks_at
from bitwright.solvers.gptq import Gptq

# Whole in every beginning of the file, as for bit-stack.
RECIPE = Recipe(
    "double-rounding",
    format=Nested(),
    solver=Gptq(),
    embedding=Integer(6, 64, "symmetric", search=20),
    propagate=False,
)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The most blocks that store at most `bits`: how far the file can go."""
    return blocks_at(recipe, bits, shapes, recipe.format.blocks if isinstance(recipe.format, Elastic) else 1)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None
