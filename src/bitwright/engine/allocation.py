"""A format for every tensor from a table of sensitivities, under a budget of bytes or of loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from bitwright.allocate.choose import Allocation, Infeasible, allocate, option_of, smallest
from bitwright.allocate.problem import Budget, Side, Unit
from bitwright.engine.job import Job
from bitwright.engine.units import TABLES, UNIFORM, Shapes, Units, make_units, stored_bytes
from bitwright.errors import Refused
from bitwright.protocols import Format, Menu, Recipe
from bitwright.sensitivity.scores import DIVERGENCES
from bitwright.sensitivity.table import Table
from bitwright.spec import label

if TYPE_CHECKING:
    from bitwright.engine.plan import Plan

TRIES = 6  # until the header, which depends on the choice, fits too


@dataclass(frozen=True)
class Share:
    """Where the bits of one kind of linear in a third of the blocks (or of the tables) went: stored bits a weight and
    predicted divergence, here and with one format for all blocks."""

    kind: str
    part: int | None  # 1 to 3; None: of the tables
    weights: int
    bits: float
    loss: float
    uniform_bits: float | None
    uniform_loss: float | None


@dataclass(frozen=True)
class Decision:
    """What the allocator chose, and what one format for all blocks would have cost at the same size.

    Losses are predicted KL divergences in nats a token, whatever score chose. `price`: KL that one more MB would save.
    """

    score: str
    loss: float
    gap: float
    price: float
    uniform: str | None  # its format; None where no single format fits
    uniform_loss: float | None
    shares: tuple[Share, ...]


def decide(
    job: Job,
    recipe: Recipe,
    menu: Menu,
    table: Table,
    shapes: Shapes,
    tables: Shapes,
    planned: Callable[[Recipe], Plan],
) -> tuple[Plan, Decision]:
    """The plan with the chosen formats. `shapes` of block weights and of embedding and head, in order of use."""
    score = job.score or menu.score
    free = bool(tables) and bool(menu.tables) and job.target_bpw is None and recipe.embedding is not None
    chosen = shapes | tables if free else shapes
    units = make_units(score, menu, table, shapes, tables if free else {})
    formats = {label(fmt): fmt for fmt in (*menu.formats, *menu.tables)}
    base = planned(recipe)
    # Headers, and tensors that stay as they are; the choice changes the headers a little.
    overhead = base.file_bytes - sum(stored_bytes(base.formats[name], shape) for name, shape in chosen.items())
    for _ in range(TRIES):
        allocation, uniform = _solve(units, job, menu, score, _limit(job, shapes, overhead), free)
        plan = planned(_recipe(recipe, allocation, formats, shapes))
        if job.target_bytes is None or plan.file_bytes <= job.target_bytes:
            return plan, _decision(score, units, allocation, uniform)
        overhead += plan.file_bytes - job.target_bytes
    raise Refused(f"no choice of formats came out below {job.target_bytes:,} bytes: give a little more.")


def _limit(job: Job, shapes: Shapes, overhead: int) -> int | None:
    """Bytes that the units may take in all."""
    if job.target_bpw is not None:
        return int(job.target_bpw * sum(prod(shape) for shape in shapes.values()) / 8)
    return None if job.target_bytes is None else job.target_bytes - overhead


def _solve(
    units: Units, job: Job, menu: Menu, score: str, limit: int | None, free: bool
) -> tuple[Allocation, Allocation | None]:
    """The choice, and the best one with a single format for all blocks (None if none fits)."""
    together = Side(ties=(units.blocks,))
    if job.max_kl is not None:
        return smallest(units.told_by, "bytes", job.max_kl), _unless_impossible(
            lambda: smallest(units.told_by, "bytes", job.max_kl or 0.0, together)
        )
    budgets = [Budget("bytes", limit)]
    uniform = _unless_impossible(lambda: allocate(units.told_by, budgets, together))
    side = Side()
    if score == UNIFORM:
        if uniform is None:
            raise Refused(f"{_asked(job)} cannot be reached with one format for all blocks: choose another score.")
        return uniform, uniform
    if free and score not in DIVERGENCES:
        # Losses of layers and of the embedding have no common unit: it is stored as in the best uniform file.
        if uniform is None:
            raise Refused(f"no single format fits, which the score {score} starts from: choose another score.")
        side = Side(fixed={TABLES: uniform.choice[TABLES]})
    if menu.rank:
        ties: dict[str, list[str]] = {}
        for unit in units.chosen_by:
            for tag in unit.tags:
                ties.setdefault(tag, []).append(unit.name)
        side = replace(side, ties=tuple(map(tuple, ties.values())))
    try:
        return allocate(units.chosen_by, budgets, side, method="rank" if menu.rank else "auto"), uniform
    except Infeasible as error:
        raise Refused(f"{_asked(job)} cannot be reached with the formats of this recipe: {error}") from None


def _asked(job: Job) -> str:
    return f"{job.target_bpw} bits a weight" if job.target_bytes is None else f"a file of {job.target_bytes / 1e6:g} MB"


def _unless_impossible(make: Callable[[], Allocation]) -> Allocation | None:
    try:
        return make()
    except Infeasible:
        return None


def _recipe(recipe: Recipe, allocation: Allocation, formats: dict[str, Format], shapes: Shapes) -> Recipe:
    """The commonest format for all, rules for the others."""
    chosen = {name: formats[allocation.choice[name]] for name in shapes}
    common = Counter(chosen.values()).most_common(1)[0][0]
    rules = tuple((name, fmt) for name, fmt in chosen.items() if fmt != common)
    embedding = formats[allocation.choice[TABLES]] if TABLES in allocation.choice else recipe.embedding
    return replace(recipe, format=common, rules=rules, keep=(), embedding=embedding)


def _decision(score: str, units: Units, allocation: Allocation, uniform: Allocation | None) -> Decision:
    return Decision(
        score=score,
        loss=units.divergence(allocation),
        gap=allocation.gap,
        price=allocation.prices.get("bytes", 0.0) * 1e6,
        uniform=None if uniform is None else uniform.choice[units.blocks[0]],
        uniform_loss=None if uniform is None else units.divergence(uniform),
        shares=tuple(_shares(units, allocation, uniform)),
    )


def _shares(units: Units, allocation: Allocation, uniform: Allocation | None) -> Iterator[Share]:
    members: dict[tuple[str, int | None], list[Unit]] = {}
    for unit in units.told_by:
        members.setdefault(units.places[unit.name], []).append(unit)
    for (kind, part), own in members.items():
        weights = sum(units.weights[unit.name] for unit in own)

        def told(of: Allocation, own: list[Unit] = own, weights: int = weights) -> tuple[float, float]:
            options = [option_of(unit, of.choice[unit.name]) for unit in own]
            return 8 * sum(option.costs["bytes"] for option in options) / weights, sum(o.loss for o in options)

        yield Share(kind, part, weights, *told(allocation), *((None, None) if uniform is None else told(uniform)))
