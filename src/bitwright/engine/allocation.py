"""A format for every tensor from a table of sensitivities, under limits of bytes, of time or of loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bitwright.allocate.choose import Allocation, Infeasible, Method, allocate, option_of, smallest
from bitwright.allocate.problem import Budget, Count, Side, Unit
from bitwright.engine.job import Job
from bitwright.engine.limits import Rest, among, asked, budgets, head_of, rest_of, why
from bitwright.engine.settings import free_tables
from bitwright.engine.units import (
    BIT_OPERATIONS,
    BLOCK,
    BYTES,
    EXPERT,
    TABLES,
    UNIFORM,
    Shapes,
    Units,
    make_units,
    tied,
)
from bitwright.errors import Unreachable
from bitwright.protocols import Format
from bitwright.recipe import Menu, Recipe
from bitwright.sensitivity.scores import DIVERGENCES
from bitwright.sensitivity.table import Table
from bitwright.spec import label

if TYPE_CHECKING:
    from bitwright.engine.plan import Plan
    from bitwright.engine.speed import Latency

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
    """What the allocator chose, and what one format for all blocks would have cost within the same limits.

    Losses are predicted KL divergences in nats a token, whatever score chose. `price`: KL that one more MB would save.
    """

    score: str
    loss: float
    gap: float
    price: float
    bit_operations: int  # a token: multiply-adds x bits of a code x bits of an activation
    tokens_per_second: float | None  # predicted; None where speed was not asked for
    uniform: str | None  # its format; None where no single format fits
    uniform_loss: float | None
    uniform_tokens_per_second: float | None
    shares: tuple[Share, ...]


def decide(
    job: Job,
    recipe: Recipe,
    menu: Menu,
    table: Table,
    shapes: Shapes,
    tables: Shapes,
    planned: Callable[[Recipe], Plan],
    timed: Callable[[Shapes, Shapes], Latency],
) -> tuple[Plan, Decision]:
    """The plan with the chosen formats. `shapes` of block weights and of embedding and head, in order of use.

    `timed` measures the products of blocks and of a head that is chosen too; it is asked where speed counts.
    """
    score = job.score or menu.score
    free = bool(tables) and free_tables(job, menu) and recipe.embedding is not None
    formats = {label(fmt): fmt for fmt in (*menu.formats, *menu.tables)}
    base = planned(recipe)
    latency = timed(shapes, head_of(tables) if free else {}) if job.min_speed else None
    units = make_units(score, menu, table, shapes, tables if free else {}, latency)
    rest = rest_of(base, shapes, tables, free, None if latency is None else latency.rest)
    for _ in range(TRIES):
        allocation, uniform = _solve(units, job, menu, score, budgets(job, menu, units, rest), rest, free)
        plan = planned(_recipe(recipe, menu, allocation, formats, shapes))
        if job.target_bytes is None or plan.file_bytes <= job.target_bytes:
            return plan, _decision(score, units, allocation, uniform, rest)
        rest = replace(rest, bytes=rest.bytes + plan.file_bytes - job.target_bytes)
    raise Unreachable(f"no choice of formats came out below {job.target_bytes:,} bytes: give a little more.")


def _solve(
    units: Units, job: Job, menu: Menu, score: str, limits: list[Budget], rest: Rest, free: bool
) -> tuple[Allocation, Allocation | None]:
    """The choice, and the best one with a single format for all blocks (None if none fits)."""

    def best(units: list[Unit], side: Side, method: Method = "auto") -> Allocation:
        if job.max_kl is not None:
            return smallest(units, BYTES, job.max_kl, side, limits)
        return allocate(units, limits, side, method=method)

    uniform = _unless_impossible(lambda: best(units.told_by, Side(ties=(units.blocks,))))
    side = Side()
    if score == UNIFORM:
        if uniform is None:
            raise Unreachable(f"{asked(job)} cannot be reached with one format for all blocks: choose another score.")
        return uniform, uniform
    if free and score not in DIVERGENCES and job.max_kl is None:
        # Losses of layers and of the embedding have no common unit: it is stored as in the best uniform file.
        if uniform is None:
            raise Unreachable(f"no single format fits, which the score {score} starts from: choose another score.")
        side = Side(fixed={TABLES: uniform.choice[TABLES]})
    if menu.rank:
        side = replace(side, ties=tied(units.chosen_by, BLOCK))
    if menu.apart:
        blocks = tied(units.chosen_by, BLOCK)
        counts = (Count(label(fmt), 1, where=among(own)) for fmt in menu.present for own in blocks)
        side = replace(side, ties=tied(units.chosen_by, EXPERT), counts=tuple(counts))
    try:
        chosen_by = units.told_by if job.max_kl is not None else units.chosen_by
        return best(chosen_by, side, "rank" if menu.rank else "auto"), uniform
    except Infeasible as error:
        raise Unreachable(
            f"{asked(job)} cannot be reached with the formats of this recipe: {why(job, units, rest, error)}"
        ) from None


def _unless_impossible(make: Callable[[], Allocation]) -> Allocation | None:
    try:
        return make()
    except Infeasible:
        return None


def _recipe(recipe: Recipe, menu: Menu, allocation: Allocation, formats: dict[str, Format], shapes: Shapes) -> Recipe:
    """The commonest format for all, rules for the others; rules for all that is chosen where some is not."""
    chosen = {name: formats[allocation.choice[name]] for name in shapes}
    if menu.only is not None:
        return replace(recipe, rules=(*chosen.items(), *recipe.rules))
    common = Counter(chosen.values()).most_common(1)[0][0]
    rules = tuple((name, fmt) for name, fmt in chosen.items() if fmt != common)
    embedding = formats[allocation.choice[TABLES]] if TABLES in allocation.choice else recipe.embedding
    return replace(recipe, format=common, rules=(*recipe.rules, *rules), embedding=embedding)


def _decision(score: str, units: Units, allocation: Allocation, uniform: Allocation | None, rest: Rest) -> Decision:
    return Decision(
        score=score,
        loss=units.divergence(allocation),
        gap=allocation.gap,
        price=allocation.prices.get(BYTES, 0.0) * 1e6,
        bit_operations=allocation.totals[BIT_OPERATIONS] + rest.bit_operations,
        tokens_per_second=rest.speed(allocation),
        uniform=None if uniform is None else uniform.choice[units.blocks[0]],
        uniform_loss=None if uniform is None else units.divergence(uniform),
        uniform_tokens_per_second=None if uniform is None else rest.speed(uniform),
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
            return 8 * sum(option.costs[BYTES] for option in options) / weights, sum(o.loss for o in options)

        yield Share(kind, part, weights, *told(allocation), *((None, None) if uniform is None else told(uniform)))
