"""A format for every tensor from a table of sensitivities, under a budget of bytes or of loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from bitwright.allocate.choose import Allocation, Infeasible, allocate, option_of, smallest
from bitwright.allocate.problem import Budget, Option, Side, Unit
from bitwright.engine.job import Job
from bitwright.errors import Refused
from bitwright.protocols import Format, Menu, Recipe
from bitwright.sensitivity.scores import DIVERGENCES, losses
from bitwright.sensitivity.table import Table, key
from bitwright.spec import label

if TYPE_CHECKING:
    from bitwright.engine.plan import Plan

TABLES = "embedding and head"  # their unit
UNIFORM = "uniform"  # a score for comparison: one format for all blocks
TRIES = 6  # until the header, which depends on the choice, fits too
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Share:
    """Where the bits of one kind of linear (or of the tables) went: stored bits a weight and predicted divergence, here
    and with one format for all blocks."""

    kind: str
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


@dataclass(frozen=True)
class _Problem:
    """Units with the losses that choose, and the same units with predicted divergences."""

    chosen_by: list[Unit]
    told_by: list[Unit]
    blocks: tuple[str, ...]
    kinds: dict[str, str]  # unit -> kind of linear
    weights: dict[str, int]  # of a unit

    def divergence(self, allocation: Allocation) -> float:
        return sum(option_of(unit, allocation.choice[unit.name]).loss for unit in self.told_by)


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
    problem = _problem(score, menu, table, shapes, tables if free else {})
    formats = {label(fmt): fmt for fmt in (*menu.formats, *menu.tables)}
    base = planned(recipe)
    units = [*shapes, *(tables if free else ())]
    # Headers, and tensors that stay as they are; the choice changes the headers a little.
    overhead = base.file_bytes - sum(_bytes(base.formats[name], (shapes | tables)[name]) for name in units)
    for _ in range(TRIES):
        allocation, uniform = _solve(problem, job, menu, score, _limit(job, shapes, overhead), free)
        plan = planned(_recipe(recipe, allocation, formats, shapes))
        if job.target_bytes is None or plan.file_bytes <= job.target_bytes:
            return plan, _decision(score, problem, allocation, uniform)
        overhead += plan.file_bytes - job.target_bytes
    raise Refused(f"no choice of formats came out below {job.target_bytes:,} bytes: give a little more.")


def _limit(job: Job, shapes: Shapes, overhead: int) -> int | None:
    """Bytes that the units may take in all."""
    if job.target_bpw is not None:
        return int(job.target_bpw * sum(prod(shape) for shape in shapes.values()) / 8)
    return None if job.target_bytes is None else job.target_bytes - overhead


def _problem(score: str, menu: Menu, table: Table, shapes: Shapes, tables: Shapes) -> _Problem:
    def units(by: str) -> list[Unit]:
        lost = losses(table, by, menu.formats, shapes, menu.reference)
        return [
            Unit(
                name,
                tuple(Option(label(f), lost[name][label(f)], {"bytes": _bytes(f, shape)}) for f in menu.formats),
                frozenset({f"block {table.tensors[name].block}"}),
            )
            for name, shape in shapes.items()
        ]

    whole = []
    if tables:
        options = (
            Option(label(f), table.tables[key(f)], {"bytes": sum(_bytes(f, shape) for shape in tables.values())})
            for f in menu.tables
        )
        whole = [Unit(TABLES, tuple(options))]
    told_by = units(score if score in DIVERGENCES else DIVERGENCES[0]) + whole
    chosen_by = told_by if score in (*DIVERGENCES, UNIFORM) else units(score) + whole
    kinds = {name: table.tensors[name].group.partition(",")[0] for name in shapes} | {TABLES: TABLES}
    weights = {name: prod(shape) for name, shape in shapes.items()}
    weights[TABLES] = sum(prod(shape) for shape in tables.values())
    return _Problem(chosen_by, told_by, tuple(shapes), kinds, weights)


def _bytes(fmt: Format, shape: tuple[int, ...]) -> int:
    return fmt.bits((shape[-2], shape[-1])).bytes * (shape[0] if len(shape) == 3 else 1)


def _solve(
    problem: _Problem, job: Job, menu: Menu, score: str, limit: int | None, free: bool
) -> tuple[Allocation, Allocation | None]:
    """The choice, and the best one with a single format for all blocks (None if none fits)."""
    together = Side(ties=(problem.blocks,))
    if job.max_kl is not None:
        return smallest(problem.told_by, "bytes", job.max_kl), _unless_impossible(
            lambda: smallest(problem.told_by, "bytes", job.max_kl or 0.0, together)
        )
    budgets = [Budget("bytes", limit)]
    uniform = _unless_impossible(lambda: allocate(problem.told_by, budgets, together))
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
        for unit in problem.chosen_by:
            for tag in unit.tags:
                ties.setdefault(tag, []).append(unit.name)
        side = replace(side, ties=tuple(map(tuple, ties.values())))
    try:
        return allocate(problem.chosen_by, budgets, side, method="rank" if menu.rank else "auto"), uniform
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


def _decision(score: str, problem: _Problem, allocation: Allocation, uniform: Allocation | None) -> Decision:
    return Decision(
        score=score,
        loss=problem.divergence(allocation),
        gap=allocation.gap,
        price=allocation.prices.get("bytes", 0.0) * 1e6,
        uniform=None if uniform is None else uniform.choice[problem.blocks[0]],
        uniform_loss=None if uniform is None else problem.divergence(uniform),
        shares=tuple(_shares(problem, allocation, uniform)),
    )


def _shares(problem: _Problem, allocation: Allocation, uniform: Allocation | None) -> Iterator[Share]:
    for kind in dict.fromkeys(problem.kinds[unit.name] for unit in problem.told_by):
        units = [unit for unit in problem.told_by if problem.kinds[unit.name] == kind]
        weights = sum(problem.weights[unit.name] for unit in units)

        def told(of: Allocation, units: list[Unit] = units, weights: int = weights) -> tuple[float, float]:
            options = [option_of(unit, of.choice[unit.name]) for unit in units]
            return 8 * sum(option.costs["bytes"] for option in options) / weights, sum(o.loss for o in options)

        yield Share(kind, weights, *told(allocation), *((None, None) if uniform is None else told(uniform)))
