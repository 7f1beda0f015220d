"""MC-MoE's mixed precision (arXiv 2410.06270): every expert gets 1, 2 or 3 bits, attention 4.

In each block an integer program minimises (share of use) x (share of routing weight)^1.5 x (change of the block's
output with that expert rounded), within the same bits a block, at least one expert at 3 and one at 2 bits; the
exponents are those of the released configurations. Both matrices of an expert share a width. Which experts may
be skipped while the model runs is measured for every mixture (`evaluate --skip-experts`, `generate --skip-experts`).
Stored bits a weight: width + 32 / 128, 1 + 16 / 128 at 1 bit.
"""

from __future__ import annotations

from dataclasses import replace

from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, Shapes, integer_at
from bitwright.recipes.gptq import caution
from bitwright.solvers.gptq import Gptq

EXPERTS = "*.experts.*"
TWO, THREE = (Integer(width, 128, search=20) for width in (2, 3))

RECIPE = Recipe(
    "mc-moe",
    format=Integer(4, 128, search=20),
    solver=Gptq(),
    embedding=Integer(8, 64, "symmetric"),
    embedding_solver=HEAD,
    rules=((EXPERTS, TWO),),
)
MENU = Menu((Binary(128), TWO, THREE), score="mc-moe", only=EXPERTS, apart=True, present=(TWO, THREE))


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """One width for everything, experts too, but for what rules that are not the recipe's own say."""
    rules = tuple(rule for rule in recipe.rules if rule not in RECIPE.rules)
    return integer_at(replace(recipe, rules=rules), bits, shapes)


__all__ = ["MENU", "RECIPE", "at_bits", "caution"]
