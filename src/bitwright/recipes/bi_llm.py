"""BiLLM (arXiv 2402.04291): signs with two scales, split by magnitude, and salient columns apart; no training.

In each row and group of 128 columns, weights below a searched break-point share one scale and those above another;
salient columns, by w^2 / u^2 and as many as lower the group's error, have signs and signs of their residual instead.
Both are two one-bit planes with two scales, and are stored as that: the bitmap of the split is the second plane. No
means: they cost 48 / group bits. Codes are chosen column by column with error feedback, where the published code
freezes them for a block, and scales weigh columns as the Hessian does: unweighted ones (solver.weighted=false) lose
up to 1.5 times as much (docs/layer-errors.md). format.salient=alternating with format.low.fitting=alternating gives
every row its own break-point, for no bits. Weights also make up for half of what inputs have lost: perplexity 275
instead of 1980 at 2.1 bits (SmolLM2-135M; drift=0 leaves it out).
Stored bits a weight: 2 + 64 / group + 1 / rows. The paper counts 1.07 to 1.13: the signs.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.zoned import Zoned
from bitwright.recipe import Recipe
from bitwright.recipes._bits import residual_at as at_bits
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe("bi-llm", format=Zoned(), solver=Gptq(), drift=0.5, embedding=Integer(8, 64, "symmetric"))


def caution(recipe: Recipe) -> str | None:
    """Measured as the recipe stands; rules for sensitive linears may mend it."""
    if recipe.rules or recipe.keep:
        return None
    return (
        "BiLLM alone is a long way off (SmolLM2-135M, WikiText-2: perplexity 275 at 2.1 stored bits, arb-llm 175, "
        "float 20): give v_proj and k_proj more bits by rules, or take --quality fast (41 at 2.06)."
    )


__all__ = ["RECIPE", "at_bits", "caution"]
