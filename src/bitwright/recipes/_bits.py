"""Settings that meet a number of stored bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

from bitwright.bits import total
from bitwright.errors import Refused, TooFewBits
from bitwright.formats.integer import Integer
from bitwright.formats.mixture import Mixture
from bitwright.formats.residual import MOST, Residual
from bitwright.formats.zoned import Zoned
from bitwright.protocols import Elastic, Format
from bitwright.recipe import Recipe
from bitwright.solvers.gptq import Gptq

WIDTHS = (2, 3, 4, 5, 6, 8)
INTEGERS = tuple(
    Integer(width, group, search=20) for width in WIDTHS for group in ((32, 64, None) if width < 5 else (64,))
)
"""Integers for an allocator: small groups pay at few bits only."""
TABLES = (
    *(Integer(width, group, search=10) for width in (2, 3, 4) for group in (32, 64)),
    Integer(5, 64, search=10),
    Integer(6, 64, search=10),
    Integer(8, 64, "symmetric"),
)
"""The same for embeddings."""
HEAD = Gptq(damping=0.3)
"""Of a matrix that is embedding and head: rows that are looked up bear compensation badly, so damping is high."""

Shapes = Sequence[tuple[int, int]]


def stored_bits(fmt: Format, shapes: Shapes) -> float:
    """Stored bits a weight over matrices of these shapes."""
    return total(fmt.bits(shape) for shape in shapes).total / sum(rows * columns for rows, columns in shapes)


def largest_share(make: Callable[[float], Format], bits: float, shapes: Shapes, what: str) -> Format:
    """The format with the largest share in 0 .. 1 (to 1/4096) that stores at most `bits`."""
    low, high = 0, 4096
    least, most = stored_bits(make(0.0), shapes), stored_bits(make(1.0), shapes)
    if bits < least:
        raise TooFewBits(f"{bits} bits are too few for {what}: it stores at least {least:.3f} here, give that or more.")
    if bits >= most:
        raise Refused(f"{bits} bits are more than {what} can use: it stores at most {most:.3f} here.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if stored_bits(make(middle / 4096), shapes) <= bits else (low, middle)
    return make(low / 4096)


def residual_at(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The most planes, and the smallest group beside them, that store at most `bits`."""
    base = recipe.format
    low = base.low if isinstance(base, Mixture | Zoned) else base
    if not isinstance(low, Residual):
        raise Refused("--bits chooses among residual planes: leave it out, or leave format as it is.")
    orders = range(1, MOST + 1) if low.fitting != "split" and low.values == "sign" else (2,)
    stored = []
    for order, group in product(orders, (32, 64, 128, 256, None)):
        planes = replace(low, order=order, group=group)
        fmt = replace(base, low=planes) if isinstance(base, Mixture | Zoned) else planes
        stored.append((order, stored_bits(fmt, shapes), fmt))
    least, most = min(s[1] for s in stored), max(s[1] for s in stored)
    if bits > most + 1e-9:
        raise Refused(f"{bits} bits are more than {recipe.name} can use: it stores at most {most:.3f} here.")
    fits = [s for s in stored if s[1] <= bits + 1e-9]
    if not fits:
        raise TooFewBits(
            f"{bits} bits are too few for {recipe.name}: it stores at least {least:.3f} here, give that or more."
        )
    return replace(recipe, format=max(fits, key=lambda fit: fit[:2])[2])


def blocks_at(recipe: Recipe, bits: float, shapes: Shapes, most: int) -> Recipe:
    """The most blocks, up to `most`, that store at most `bits`."""
    base = recipe.format
    if not isinstance(base, Elastic):
        raise Refused("--bits chooses a number of blocks: leave it out, or leave format as it is.")
    choices = [base.prefix(count) for count in range(1, most + 1)]
    stored = [stored_bits(choice, shapes) for choice in choices]
    if bits < stored[0] - 1e-9:
        raise TooFewBits(
            f"{bits} bits are too few for {recipe.name}: it stores at least {stored[0]:.3f} here, give that or more."
        )
    if bits > stored[-1] + 1e-9:
        raise Refused(f"{bits} bits are more than {recipe.name} can use: it stores at most {stored[-1]:.3f} here.")
    return replace(recipe, format=choices[sum(used <= bits + 1e-9 for used in stored) - 1])


def integer_at(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The widest integer, and the smallest group beside it, that stores at most `bits`."""
    base = recipe.format
    if not isinstance(base, Integer):
        raise Refused("--bits chooses among integers: leave it out, or leave format as it is.")
    choices = [
        replace(base, bits_per_code=width, group=group)
        for width in range(1, 9)
        for group in (32, 64, 128, 256, None)
        if width > 1 or base.grid != "symmetric"
    ]
    fits = [(c.bits_per_code, stored_bits(c, shapes), c) for c in choices if stored_bits(c, shapes) <= bits + 1e-9]
    if not fits:
        least = min(stored_bits(c, shapes) for c in choices)
        raise TooFewBits(
            f"{bits} bits are too few for integers: they store at least {least:.3f} here, give that or more."
        )
    most = max(stored_bits(c, shapes) for c in choices)
    if bits > most + 1e-9:
        raise Refused(f"{bits} bits are more than integers can use: they store at most {most:.3f} here.")
    return replace(recipe, format=max(fits, key=lambda fit: fit[:2])[2])
