"""AdaQuant with integer programming (arXiv 2006.10518): calibrated by gradients, bits by measured loss, repaired.

Each layer is calibrated by gradient descent on its output error, over weights and ranges together: one after the other
on inputs from the layers already quantized (the paper's sequential mode), or all on those of the float model (its
parallel mode, `--set propagate=false`). Its scales are then multiplied such that every output is as large as before.
With `--target-size` and the like an integer program spends the bytes by what quantizing layers alone did to the
model's loss, here measured by kinds of layers in thirds of the model (score `measured`), as KL divergence. `bitwright
train --recipe adaquant-ip` goes on with the paper's bias tuning: only norms and biases learn from the float model.
At 3 bits the solver leaves 1.2 times the output error of GPTQ (rounding: 1.6; q of block 5 of SmolLM2-135M).
Ranges belong to groups of 64 columns, not to rows. Stored bits a weight: width + 32 / group.
"""

from __future__ import annotations

from bitwright.formats.integer import Integer
from bitwright.learning import Learning
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, TABLES
from bitwright.recipes._bits import integer_at as at_bits
from bitwright.recipes.gptq import caution
from bitwright.solvers.adaquant import Adaquant
from bitwright.solvers.repaired import Repaired

RECIPE = Recipe(
    "adaquant-ip",
    format=Integer(4, 64, search=20),
    solver=Repaired(Adaquant()),
    embedding=Integer(8, 64, "symmetric"),
    embedding_solver=HEAD,
)
MENU = Menu(
    tuple(Integer(width, 64, search=20) for width in (2, 3, 4, 6, 8)),
    TABLES,
    score="measured",
    reference=Integer(3, 64, search=20),
)
TRAINING = Learning(rate=0.0, parameter_rate=0.0, vector_rate=5e-3)

__all__ = ["MENU", "RECIPE", "TRAINING", "at_bits", "caution"]
