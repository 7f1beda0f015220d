"""PB-LLM (arXiv 2310.00034): a few salient weights at 8 or 4 bits, all others binary.

Salience is w^2 / u^2 (rise of the loss if the weight were dropped); both kinds go through one GPTQ loop, then through
descent under the Hessian (solver={"kind": "gptq"} leaves it out). Damping is five times GPTQ's. Both measured
better (docs/layer-errors.md). Weights make up for half of what inputs have lost: perplexity 43 instead of 69 at 30 %
and 4 bits (SmolLM2-135M; drift=0 leaves it out).
Stored bits a weight, with a bitmap: 1 (signs) + 1 (bitmap) + share * salient bits + 32 / group + 32 / columns.
"""

from __future__ import annotations

from dataclasses import replace

from bitwright.errors import Refused
from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.learning import Learning
from bitwright.partitions.salience import Salience
from bitwright.recipe import Recipe
from bitwright.recipes._bits import Shapes, largest_share
from bitwright.solvers.descent import Descent
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe(
    "pb-llm",
    format=Mixed(Binary(), Salience(0.3), salient_bits=8),
    solver=Descent(Gptq(damping=0.05)),
    drift=0.5,
    embedding=Integer(8, 64, "symmetric"),
)

TRAINING = Learning(
    divergence=0.0, entropy=1.0, frozen=("mask", "salient_scale", "salient_min"), analytic=True, memory=True
)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The largest salient share that fits."""
    base = recipe.format
    if not isinstance(base, Mixed):
        raise Refused("--bits chooses the salient share of a mixed format: leave it out, or leave format as it is.")
    by = base.by
    if not isinstance(by, Salience):
        raise Refused("slots have a fixed share: leave out --bits, or set format.where to 'bitmap' or 'offsets'.")
    fmt = largest_share(lambda share: replace(base, by=replace(by, share=share)), bits, shapes, "this kind of PB-LLM")
    return replace(recipe, format=fmt)


def caution(recipe: Recipe) -> str | None:
    """Small shares lose much without training."""
    by = recipe.format.by if isinstance(recipe.format, Mixed) else None
    if not isinstance(by, Salience) or by.share >= 0.25:
        return None
    return (
        f"PB-LLM without training loses much at {by.share:.1%} salient weights (SmolLM2-135M, WikiText-2, 4 bits: "
        "perplexity 141 at 10 %, 69 at 20 %, 43 at 30 %, float 20): use 30 %, or gptq at 3 bits (29)."
    )
