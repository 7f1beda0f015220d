"""A format for every tensor from a table of sensitivities, under limits of bytes, of time or of loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from bitwright.allocate.choose import Allocation, Infeasible, Method, allocate, option_of, smallest
from bitwright.allocate.problem import Budget, Count, Side, Unit
from bitwright.artifact.layout import expert_name
from bitwright.engine.job import Job
from bitwright.engine.units import (
    BIT_OPERATIONS,
    BYTES,
    NANOSECONDS,
    TABLES,
    UNIFORM,
    Shapes,
    Units,
    bit_operations,
    make_units,
    stored_bytes,
    tied,
)
from bitwright.errors import Refused
from bitwright.protocols import Format, Menu, Recipe
from bitwright.sensitivity.scores import DIVERGENCES
from bitwright.sensitivity.table import Table
from bitwright.spec import label

if TYPE_CHECKING:
    from bitwright.artifact.layout import Weight
    from bitwright.engine.plan import Plan
    from bitwright.engine.speed import Latency

BLOCK, EXPERT = r"block \d+", r"block \d+, expert \d+"  # tags of units
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


@dataclass(frozen=True)
class Rest:
    """What every choice costs beside its units: headers and fixed tensors, and the step of the engine around them."""

    bytes: int  # a little more or less, as the choice changes the headers
    block_bytes: int  # of these, linears in blocks that nothing is chosen for
    block_weights: int  # all of them
    bit_operations: int
    nanoseconds: int | None  # None where speed was not asked for

    def speed(self, allocation: Allocation) -> float | None:
        """Tokens a second of a choice."""
        if self.nanoseconds is None:
            return None
        return 1e9 / max(self.nanoseconds + allocation.totals[NANOSECONDS], 1)


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
    free = bool(tables) and bool(menu.tables) and job.target_bpw is None and recipe.embedding is not None
    formats = {label(fmt): fmt for fmt in (*menu.formats, *menu.tables)}
    base = planned(recipe)
    latency = timed(shapes, head_of(tables) if free else {}) if job.min_speed else None
    units = make_units(score, menu, table, shapes, tables if free else {}, latency)
    fixed = _fixed(base, shapes, tables if free else {})
    rest = Rest(
        base.file_bytes - sum(stored_bytes(base.formats[w.name], w.shape) for w in _others(base, fixed)),
        sum(stored_bytes(base.formats[w.name], w.shape) for w in fixed if w.name not in tables),
        sum(w.count for w in base.contents.quantization.weights if w.name not in tables),
        sum(bit_operations(base.formats[n], s) for n, s in head_of(tables).items() if n in base.formats and not free),
        None if latency is None else latency.rest,
    )
    for _ in range(TRIES):
        allocation, uniform = _solve(units, job, menu, score, _budgets(job, menu, units, rest), rest, free)
        plan = planned(_recipe(recipe, menu, allocation, formats, shapes))
        if job.target_bytes is None or plan.file_bytes <= job.target_bytes:
            return plan, _decision(score, units, allocation, uniform, rest)
        rest = replace(rest, bytes=rest.bytes + plan.file_bytes - job.target_bytes)
    raise Refused(f"no choice of formats came out below {job.target_bytes:,} bytes: give a little more.")


def head_of(tables: Shapes) -> Shapes:
    """The matrix that makes logits: the last of embedding and head."""
    return dict(list(tables.items())[-1:])


def _fixed(base: Plan, shapes: Shapes, tables: Shapes) -> list[Weight]:
    """Stored weights that nothing is chosen for."""
    return [w for w in base.contents.quantization.weights if w.name not in tables and not _is_unit(w, shapes)]


def _others(base: Plan, fixed: list[Weight]) -> list[Weight]:
    return [w for w in base.contents.quantization.weights if w not in fixed]


def _is_unit(weight: Weight, shapes: Shapes) -> bool:
    return weight.name in shapes or expert_name(weight.name, 0) in shapes


def _budgets(job: Job, menu: Menu, units: Units, rest: Rest) -> list[Budget]:
    """What the units may take in all, or those of each block where losses compare only inside one."""
    found = []
    if job.target_bytes is not None:
        found.append(Budget(BYTES, job.target_bytes - rest.bytes))
    if job.target_bpw is not None:
        found.append(Budget(BYTES, int(job.target_bpw * rest.block_weights / 8) - rest.block_bytes))
    if job.min_speed is not None and rest.nanoseconds is not None:
        found.append(Budget(NANOSECONDS, int(1e9 / job.min_speed) - rest.nanoseconds))
    if job.max_bit_operations is not None:
        found.append(Budget(BIT_OPERATIONS, job.max_bit_operations - rest.bit_operations))
    if not menu.apart:
        return found
    weights = {tie: sum(units.weights[name] for name in tie) for tie in tied(units.told_by, BLOCK)}
    total = sum(weights.values())
    return [
        Budget(budget.resource, (budget.upper or 0) * own // total, where=partial(_in, frozenset(tie)))
        for budget in found
        for tie, own in weights.items()
    ]


def _in(names: frozenset[str], unit: Unit) -> bool:
    return unit.name in names


def _solve(
    units: Units, job: Job, menu: Menu, score: str, budgets: list[Budget], rest: Rest, free: bool
) -> tuple[Allocation, Allocation | None]:
    """The choice, and the best one with a single format for all blocks (None if none fits)."""

    def best(units: list[Unit], side: Side, method: Method = "auto") -> Allocation:
        if job.max_kl is not None:
            return smallest(units, BYTES, job.max_kl, side, budgets)
        return allocate(units, budgets, side, method=method)

    uniform = _unless_impossible(lambda: best(units.told_by, Side(ties=(units.blocks,))))
    side = Side()
    if score == UNIFORM:
        if uniform is None:
            raise Refused(f"{_asked(job)} cannot be reached with one format for all blocks: choose another score.")
        return uniform, uniform
    if free and score not in DIVERGENCES and job.max_kl is None:
        # Losses of layers and of the embedding have no common unit: it is stored as in the best uniform file.
        if uniform is None:
            raise Refused(f"no single format fits, which the score {score} starts from: choose another score.")
        side = Side(fixed={TABLES: uniform.choice[TABLES]})
    if menu.rank:
        side = replace(side, ties=tied(units.chosen_by, BLOCK))
    if menu.apart:
        blocks = tied(units.chosen_by, BLOCK)
        counts = (Count(label(fmt), 1, where=partial(_in, frozenset(own))) for fmt in menu.present for own in blocks)
        side = replace(side, ties=tied(units.chosen_by, EXPERT), counts=tuple(counts))
    try:
        chosen_by = units.told_by if job.max_kl is not None else units.chosen_by
        return best(chosen_by, side, "rank" if menu.rank else "auto"), uniform
    except Infeasible as error:
        raise Refused(
            f"{_asked(job)} cannot be reached with the formats of this recipe: {_why(job, units, rest, error)}"
        ) from None


def _why(job: Job, units: Units, rest: Rest, error: Infeasible) -> str:
    """What falls short, and by how much; of speed and operations in the units that were asked for."""
    told = []
    for resource, short in error.lacks.items():
        least = sum(min(option.costs.get(resource, 0) for option in unit.options) for unit in units.told_by)
        if resource == NANOSECONDS and rest.nanoseconds is not None:
            fastest, fixed = rest.nanoseconds + least, rest.nanoseconds
            alone = job.min_speed is not None and 1e9 / max(fastest, 1) < job.min_speed
            told.append(
                f"the fastest choice makes {1e9 / max(fastest, 1):,.0f} tokens/s here, {fastest / 1e3:,.0f} us each, "
                f"{fixed / 1e3:,.0f} of them attention, norms and waiting"
                if alone
                else f"within the other limits a token takes {short / 1e3:,.1f} us too long"
            )
        elif resource == BIT_OPERATIONS:
            told.append(
                f"{short / 1e9:.4g} giga bit operations too few (at least {(least + rest.bit_operations) / 1e9:.4g})"
            )
    return "; ".join(told) + "." if told else str(error)


def _asked(job: Job) -> str:
    asked = {
        f"a file of {(job.target_bytes or 0) / 1e6:g} MB": job.target_bytes,
        f"{job.target_bpw} bits a weight": job.target_bpw,
        f"a divergence of {job.max_kl}": job.max_kl,
        f"{job.min_speed} tokens/s": job.min_speed,
        f"{(job.max_bit_operations or 0) / 1e9:g} giga bit operations a token": job.max_bit_operations,
    }
    return " with ".join(text for text, given in asked.items() if given is not None)


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
    return replace(recipe, format=common, rules=rules, keep=(), embedding=embedding)


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
