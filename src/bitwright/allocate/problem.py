"""Units, options, budgets and side constraints, and the arrays that solvers see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import Refused

Objective = Literal["sum", "max"]


@dataclass(frozen=True)
class Option:
    """One way to store a unit: its loss (additive over units) and what it costs, in whole numbers of each resource."""

    name: str
    loss: float
    costs: Mapping[str, int]


@dataclass(frozen=True)
class Unit:
    """What gets exactly one of its options: a tensor, a block, an expert, a group of columns."""

    name: str
    options: tuple[Option, ...]
    tags: frozenset[str] = frozenset()


Where = Callable[[Unit], bool]


@dataclass(frozen=True)
class Budget:
    """`lower` <= sum of the costs in one resource <= `upper`, over all units or those that `where` accepts."""

    resource: str
    upper: int | None = None
    lower: int | None = None
    where: Where | None = None


@dataclass(frozen=True)
class Count:
    """How many units (of those that `where` accepts) may have an option of this name."""

    option: str
    at_least: int | None = None
    at_most: int | None = None
    where: Where | None = None


@dataclass(frozen=True)
class Side:
    """`ties`: units that share an option name; `fixed`: unit -> option; `forbidden`: (unit, option) pairs."""

    ties: tuple[tuple[str, ...], ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    forbidden: frozenset[tuple[str, str]] = frozenset()
    counts: tuple[Count, ...] = ()


@dataclass(frozen=True)
class Row:
    """One linear constraint over choices: low <= weights @ x <= high; infinite where there is no limit."""

    name: str
    weights: NDArray[np.float64]  # whole numbers
    low: float
    high: float

    @property
    def scale(self) -> float:
        """A size to divide by, so that solvers see numbers near 1."""
        limits = [abs(v) for v in (self.low, self.high) if np.isfinite(v) and v != 0]
        return max([*limits, 1.0])


@dataclass(frozen=True)
class Problem:
    """Tied units are one class; a *choice* is an option of a class. N choices in K classes.

    Classes and their options are sorted by name, so that the order in which units are given changes nothing.
    """

    classes: tuple[tuple[Unit, ...], ...]
    labels: tuple[str, ...]  # option name of each choice
    owner: NDArray[np.int64]  # [N], non-decreasing
    loss: NDArray[np.float64]  # [N]
    rows: tuple[Row, ...]

    @property
    def starts(self) -> NDArray[np.int64]:
        """[K + 1]: choices of class k are starts[k] .. starts[k + 1] - 1."""
        return np.searchsorted(self.owner, np.arange(len(self.classes) + 1)).astype(np.int64)

    def padded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of choices [N] as a table [K, most options], infinite where a class has fewer."""
        starts = self.starts
        table = np.full((len(self.classes), int(np.diff(starts).max())), np.inf)
        table[self.owner, np.arange(len(self.owner)) - starts[self.owner]] = values
        return table


def build(units: Sequence[Unit], budgets: Sequence[Budget], side: Side, objective: Objective = "sum") -> Problem:
    """The arrays of a problem; `Refused` names a unit, option or resource that does not fit."""
    _check(units, side)
    classes = _classes(units, side.ties)
    combine = sum if objective == "sum" else max
    labels: list[str] = []
    owner: list[int] = []
    loss: list[float] = []
    members: list[list[Option]] = []  # of each choice, one option a member of its class
    for k, group in enumerate(classes):
        tables = [{option.name: option for option in unit.options} for unit in group]
        for name in _allowed(group, tables, side):
            own = [table[name] for table in tables]
            labels.append(name)
            owner.append(k)
            loss.append(combine(option.loss for option in own))
            members.append(own)
    if not np.isfinite(loss).all():
        raise Refused(f"the loss of {classes[owner[int(np.argmin(np.isfinite(loss)))]][0].name} is not finite.")
    rows = [_budget_row(budget, classes, owner, members) for budget in budgets]
    rows += [_count_row(count, classes, owner, labels) for count in side.counts]
    return Problem(classes, tuple(labels), np.array(owner), np.array(loss), tuple(rows))


def _check(units: Sequence[Unit], side: Side) -> None:
    names = Counter(unit.name for unit in units)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise Refused(f"two units are called {twice[0]!r}: give every unit its own name.")
    told = [*(name for tie in side.ties for name in tie), *side.fixed, *(name for name, _ in side.forbidden)]
    unknown = [name for name in told if name not in names]
    if unknown:
        raise Refused(f"a side constraint names the unit {unknown[0]!r}, which is not there.")


def _classes(units: Sequence[Unit], ties: Iterable[tuple[str, ...]]) -> tuple[tuple[Unit, ...], ...]:
    """Units joined by ties, transitively, sorted by name."""
    parent = {unit.name: unit.name for unit in units}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for tie in ties:
        for name in tie[1:]:
            first, second = sorted((root(tie[0]), root(name)))
            parent[second] = first
    groups: dict[str, list[Unit]] = {}
    for unit in sorted(units, key=lambda unit: unit.name):
        groups.setdefault(root(unit.name), []).append(unit)
    return tuple(tuple(group) for group in groups.values())


def _allowed(group: tuple[Unit, ...], tables: list[dict[str, Option]], side: Side) -> list[str]:
    """Names of the options that all members have and nothing forbids, sorted."""
    names = set(tables[0]).intersection(*tables[1:])
    names -= (
        {option for unit, option in side.forbidden if any(unit == u.name for u in group)} if side.forbidden else set()
    )
    for unit in group:
        if unit.name in side.fixed:
            names &= {side.fixed[unit.name]}
    if not names:
        raise Refused(f"no option is left for {', '.join(unit.name for unit in group[:3])}: allow one.")
    return sorted(names)


def _accepts(where: Where | None, classes: tuple[tuple[Unit, ...], ...]) -> list[list[bool]]:
    return [[where is None or where(unit) for unit in group] for group in classes]


def _budget_row(
    budget: Budget, classes: tuple[tuple[Unit, ...], ...], owner: list[int], members: list[list[Option]]
) -> Row:
    counted = _accepts(budget.where, classes)
    try:
        weights = [
            sum(option.costs[budget.resource] for option, own in zip(options, counted[k], strict=True) if own)
            for k, options in zip(owner, members, strict=True)
        ]
    except KeyError:
        raise Refused(f"an option has no cost in {budget.resource!r}: give every option one.") from None
    low = -np.inf if budget.lower is None else budget.lower
    high = np.inf if budget.upper is None else budget.upper
    return Row(budget.resource, np.array(weights, dtype=np.float64), low, high)


def _count_row(count: Count, classes: tuple[tuple[Unit, ...], ...], owner: list[int], labels: list[str]) -> Row:
    counted = [sum(own) for own in _accepts(count.where, classes)]
    weights = [counted[k] if label == count.option else 0 for k, label in zip(owner, labels, strict=True)]
    low = -np.inf if count.at_least is None else count.at_least
    high = np.inf if count.at_most is None else count.at_most
    return Row(f"number of units with {count.option}", np.array(weights, dtype=np.float64), low, high)
