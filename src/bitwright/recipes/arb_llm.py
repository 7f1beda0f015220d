"""ARB-LLM (arXiv 2410.03129): residual binarization with alternately refined scales, codes and column scales.

The paper's variants are settings. ARB: format.columns=none. ARB-RC (the default): a scale a row and block times a
scale a column, for each plane. ARB-X, scales refitted under the Hessian, is the first half of the descent that both
get here (3 rounds before it do what the paper's 15 do); solver={"kind": "gptq"} leaves it out. The column-group
bitmap (break-points of their own for salient columns) is a format of kind "zoned" around the same planes,
"alternating" in both zones, for 32 / group bits more. Here weights also make up for half of what inputs have lost
(drift=0 leaves it out).
Stored bits a weight: planes * (1 + 16 / group + 16 / rows). The paper counts 1.09: the signs.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.formats.residual import Residual
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import TABLES
from bitwright.recipes._bits import residual_at as at_bits
from bitwright.solvers.descent import Descent

RECIPE = Recipe(
    "arb-llm",
    format=Residual(2, 128, rounds=3, columns="own"),
    solver=Descent(),
    drift=0.5,
    embedding=Integer(8, 64, "symmetric"),
)

# Few tensors need more than three planes, and integers hold those better.
MENU = Menu(
    (
        *(Residual(order, 128, rounds=3, columns="own") for order in (1, 2, 3)),
        *(Integer(width, 64, search=20) for width in (4, 6)),
    ),
    TABLES,
)


def caution(recipe: Recipe) -> str | None:
    """None measured."""
    return None


__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
