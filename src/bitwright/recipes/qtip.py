"""QTIP (arXiv 2406.11235) with its incoherence processing: the trellis codes of `trellis`, of rotated weights.

QTIP multiplies weights by random signs and Hadamard matrices on both sides, so that they look like Gaussian numbers,
on which its codes are trained. Here only inputs are rotated, in blocks of up to 512 columns that are then mixed with
each other: rows have scales of their own.
Stored bits a weight: as `trellis`, signs are fixed.
"""

from __future__ import annotations

from dataclasses import replace

from bitwright.errors import Refused
from bitwright.formats.rotated import Rotated
from bitwright.recipe import Menu, Recipe
from bitwright.recipes import trellis
from bitwright.recipes._bits import Shapes

RECIPE = replace(trellis.RECIPE, name="qtip", format=Rotated(trellis.RECIPE.format))
MENU = Menu(tuple(Rotated(fmt) for fmt in trellis.MENU.formats), trellis.MENU.tables)


def at_bits(recipe: Recipe, bits: float, shapes: Shapes) -> Recipe:
    """The fewest columns a word that store at most `bits`."""
    base = recipe.format
    if not isinstance(base, Rotated):
        raise Refused("--bits chooses among rotated trellis codes: leave it out, or leave format as it is.")
    found = trellis.at_bits(replace(recipe, format=base.inner), bits, shapes)
    return replace(recipe, format=Rotated(found.format))


def caution(recipe: Recipe) -> str | None:
    """Every width has its use in a mixture."""
    return None
