"""BiLLM (arXiv 2402.04291): signs with two scales, split by magnitude; binarized without training.

In each row and block of 128 columns, weights below a searched break-point share one scale and those above another.
The published format stores signs, a bitmap of the split, and for some columns signs of the residual instead; all of
them are two one-bit planes with two scales, which is how they are stored here (no means: they cost 48 / group bits).
Codes are chosen column by column with error feedback, where the published code freezes them for a block.
Stored bits a weight: 2 + 32 / group. The paper counts 1.07 to 1.13: the signs.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.residual import Residual
from bitwright.protocols import Recipe
from bitwright.recipes._bits import residual_at as at_bits
from bitwright.solvers.gptq import Gptq

RECIPE = Recipe(
    "bi-llm", format=Residual(2, 128, "split"), solver=Gptq(weighted=False), embedding=Integer(8, 64, "symmetric")
)


def caution(recipe: Recipe) -> str | None:
    """Measured on SmolLM2-135M."""
    return (
        "this destroys small models (SmolLM2-135M at 2.27 bits: perplexity 8 million on WikiText-2, float "
        "20): arb-llm stores two planes as well and keeps more."
    )


__all__ = ["RECIPE", "at_bits", "caution"]
