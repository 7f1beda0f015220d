"""What a paper is here: a value that composes parts, and what its file in `recipes/` defines beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

from bitwright.block_task import Refiner, Transform
from bitwright.errors import BadField
from bitwright.protocols import Format, Solver


@dataclass(frozen=True)
class Recipe:
    """A paper as a value that composes parts; nothing in it runs."""

    kind: ClassVar[str] = "recipe"
    name: str
    format: Format
    solver: Solver
    embedding: Format | None = None  # of embedding and untied head; None leaves them as the source has them
    embedding_solver: Solver | None = None  # where the head is, or shares the embedding; None: rounding to nearest
    rules: tuple[tuple[str, Format], ...] = ()  # (name pattern, format): the first match wins over `format`
    keep: tuple[str, ...] = ()  # name patterns of linears that stay as they are
    affinity: float = 0.0  # experts: statistics weigh a token with (routing weight) ^ affinity
    balance: float = 0.0  # own samples of mixtures: weight of uneven use of experts beside likelihood; 0: plain samples
    transforms: tuple[Transform, ...] = ()  # of each block, one after the other, before it is quantized
    refiner: Refiner | None = None  # of each block, once all of its linears are solved
    propagate: bool = True  # statistics see inputs from already quantized layers; False: from the float model
    drift: float = 0.0  # share of what those inputs have lost that weights make up for (`calibrate/drift.py`), but for
    # experts, whose inputs are not the float model's

    def __post_init__(self) -> None:
        if not 0 <= self.drift <= 1:
            raise BadField(self, "drift", self.drift, "give 0 to 1")
        if self.drift and not self.propagate:
            raise BadField(
                self, "drift", self.drift, "without propagate no input has lost anything: give drift=0 as well"
            )
        if self.drift and not self.solver.needs_hessian:
            raise BadField(
                self, "drift", self.drift, f"{self.solver.kind} does not look at inputs: give drift=0 as well"
            )

    def format_of(self, *names: str) -> Format | None:
        """The format of a linear, None where it is kept; an expert goes by its own name and by that of its stack."""

        def meant(pattern: str) -> bool:
            return any(fnmatchcase(name, pattern) for name in names)

        if any(map(meant, self.keep)):
            return None
        return next((fmt for pattern, fmt in self.rules if meant(pattern)), self.format)


@dataclass(frozen=True)
class Menu:
    """What a recipe lets the allocator choose from, and by which losses."""

    formats: tuple[Format, ...]  # of block linears
    tables: tuple[Format, ...] = ()  # of embedding and untied head; none: as the recipe has it
    score: str = "fisher"  # see `sensitivity/scores.py`
    reference: Format | None = None  # one of `formats`, for scores that measure groups of linears on the whole model
    rank: bool = False  # whole blocks, by rank, between neighbouring formats; else every linear on its own, exactly
    only: str | None = None  # name pattern of what is chosen for; None: everything. The rest is as the recipe has it
    apart: bool = (
        False  # losses compare only inside a block: each has its own budget, experts are chosen for as a whole
    )
    present: tuple[Format, ...] = ()  # formats that something in every block is to have

    def offers(self, name: str) -> bool:
        """Whether there is a choice for this weight."""
        return self.only is None or fnmatchcase(name, self.only)


class RecipeModule(Protocol):
    """What a file in `recipes/` defines; one with a `MENU` spreads `--target-size` and `--target-bpw` over tensors, one
    with a `TRAINING` (`Learning`) says how it is trained."""

    RECIPE: Recipe
    """The paper at its natural setting."""

    def at_bits(self, recipe: Recipe, bits: float, shapes: Sequence[tuple[int, int]]) -> Recipe:
        """The recipe that stores weights of these shapes in at most `bits` a weight, everything counted."""
        ...

    def caution(self, recipe: Recipe) -> str | None:
        """One sentence with a measured number where a setting is known to be of no use, else None."""
        ...
