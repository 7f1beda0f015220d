"""STBLLM (arXiv 2408.01803): N of every M weights binarized, the others dropped.

The published format gives the weights that stay three magnitudes; two planes give two, one plane one. What is dropped
is decided before, by the paper's importance, and compensated like any rounding error (as in SparseGPT). N by layer, as
the paper has it, is a setting: rules. Weights also make up for half of what inputs have lost (drift=0 leaves it out).
Stored bits a weight: log2(binomial(M, N)) / M (the pattern) + N / M * planes + 16 * planes / group.
The paper counts N / M: the signs.
"""

from __future__ import annotations

from dataclasses import replace

from bitwright.errors import Refused, TooFewBits
from bitwright.formats.integer import Integer
from bitwright.formats.residual import Residual
from bitwright.formats.structured import Structured
from bitwright.recipe import Recipe
from bitwright.recipes._bits import Shapes, stored_bits
from bitwright.solvers.descent import Descent

RECIPE = Recipe(
    "st-bllm",
    format=Structured(Residual(2, 128, rounds=3), 4, 8, "importance"),
    solver=Descent(),
    drift=0.5,
    embedding=Integer(8, 64, "symmetric"),
)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """As many weights of each run as fit, with as many planes as there are."""
    base = recipe.format
    if not isinstance(base, Structured):
        raise Refused("--bits chooses how many weights stay: leave it out, or leave format as it is.")
    choices = [replace(base, keep=keep) for keep in range(1, base.of)]
    stored = [(c, stored_bits(c, shapes)) for c in choices]
    fits = [c for c, size in stored if size <= bits + 1e-9]
    if not fits:
        raise TooFewBits(f"{bits} bits are too few for st-bllm: it stores at least {stored[0][1]:.3f} here.")
    if bits > max(size for _, size in stored):
        raise Refused(f"{bits} bits are more than st-bllm can use: it stores at most {stored[-1][1]:.3f} here.")
    return replace(recipe, format=fits[-1])


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None
