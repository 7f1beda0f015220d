"""PTQ1.61 (arXiv 2502.13179): the columns of the largest inputs at 4 bits, all others binary with rank-one scales.

The mask costs one bit a column. Signs have a scale a row times a scale a column; the paper learns both by gradients
block by block, here they come from least squares and descent under the Hessian. Salient columns keep their sign plane
(their 4 bits come on top), so the share sets the bits. Weights also make up for half of what inputs have lost (drift=0
leaves it out).
Stored bits a weight: 1 + 4 * share + (16 + 32) / columns + 16 / rows. The paper counts 1.61 for a share of 20 %.
"""

from __future__ import annotations

from dataclasses import replace

from bitwright.errors import Refused
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.residual import Residual
from bitwright.partitions.columns import Columns
from bitwright.recipe import Recipe
from bitwright.recipes._bits import Shapes, largest_share
from bitwright.solvers.descent import Descent

RECIPE = Recipe(
    "ptq161",
    format=Mixed(Residual(1, None, rounds=3, columns="shared"), Columns(0.2), salient_bits=4, where="columns"),
    solver=Descent(),
    drift=0.5,
    embedding=Integer(8, 64, "symmetric"),
)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The largest share of columns that fits."""
    base = recipe.format
    if not isinstance(base, Mixed) or not isinstance(base.by, Columns):
        raise Refused("--bits chooses the share of salient columns: leave it out, or leave format as it is.")
    by = base.by
    fmt = largest_share(lambda share: replace(base, by=replace(by, share=share)), bits, shapes, "PTQ1.61")
    return replace(recipe, format=fmt)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None
