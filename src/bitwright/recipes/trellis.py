"""Trellis codes after QTIP (arXiv 2406.11235), chosen with GPTQ's compensation inside and between words.

As there, overlapping windows of a bit stream stand for values, the Viterbi algorithm chooses a tail-biting run of them,
and the runs of a row compensate each other (block LDLQ). What differs is for the CPU: a run is one 64-bit word of a row
not a tile of 256 weights, a window has 7 bits instead of 16 and looks up a table of 128 bytes trained on Gaussian
numbers, so that decoding is a shift and a permutation of bytes. Nothing is rotated: rows have scales of their own.
Inside a word each path of the search carries its own errors, so that the compensation is exact. At 2 bits the error of
Gaussian numbers is 0.081 (even grid 0.119, 256 weights and 16 bits 0.069, bound 0.0625).
Damping is 0.1: of 0.01, 0.03, 0.1 and 0.3 it leaves the least error on other text (eight linears of SmolLM2-135M,
calibrated on C4; other documents of C4 0.0284 against 0.0286 at 0.01, Wikipedia 0.0309 against 0.0315).
Then each word is chosen once more given all others (QuIP's greedy updates, QuantEase), and half of what the inputs have
lost before a layer is made up for by its weights (GPTAQ, arXiv 2504.02692).
Stored bits a weight: 64 / per_word (5.33, 4, 3.2, 2.67, 2.29, 2, 1.6, 1.33, 1.14 or 1) + 16 / columns.
"""

from __future__ import annotations

from dataclasses import replace

from bitwright.errors import Refused, TooFewBits
from bitwright.formats.integer import Integer
from bitwright.formats.trellis import PER_WORD, Trellis
from bitwright.recipe import Menu, Recipe
from bitwright.recipes._bits import HEAD, TABLES, Shapes, stored_bits
from bitwright.solvers.descent import Descent
from bitwright.solvers.gptq import Gptq

DAMPING = 0.1

RECIPE = Recipe(
    "trellis",
    format=Trellis(),
    solver=Descent(Gptq(damping=DAMPING), sweeps=1, damping=DAMPING),
    drift=0.5,
    embedding=Integer(6, 64, search=10),
    embedding_solver=HEAD,
)

MENU = Menu(
    (*(Trellis(per_word) for per_word in PER_WORD), *(Integer(width, 64, search=20) for width in (5, 6, 8))),
    (*(Trellis(per_word) for per_word in PER_WORD if per_word <= 32), *TABLES),
)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The fewest columns a word that store at most `bits`."""
    base = recipe.format
    if not isinstance(base, Trellis):
        raise Refused("--bits chooses among trellis codes: leave it out, or leave format as it is.")
    stored = {per_word: stored_bits(replace(base, per_word=per_word), shapes) for per_word in PER_WORD}
    fits = [per_word for per_word, used in stored.items() if used <= bits + 1e-9]
    least, most = min(stored.values()), max(stored.values())
    if not fits:
        raise TooFewBits(
            f"{bits} bits are too few for a trellis: it stores at least {least:.3f} here, give that or more."
        )
    if bits > most + 1e-9:
        raise Refused(f"{bits} bits are more than a trellis can use: it stores at most {most:.3f} here.")
    return replace(recipe, format=replace(base, per_word=min(fits)))


def caution(recipe: Recipe) -> str | None:
    """Every width has its use in a mixture."""
    return None
