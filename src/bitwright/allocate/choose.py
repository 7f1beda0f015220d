"""One allocator for every budget: which option each unit gets, what it costs, and how good that is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitwright.allocate.exact import Solved, exact, lacks, prices
from bitwright.allocate.hull import hull
from bitwright.allocate.problem import Budget, Objective, Option, Problem, Row, Side, Unit, build
from bitwright.allocate.ranking import ranked
from bitwright.errors import Refused

Method = Literal["auto", "exact", "hull", "rank"]
LOSS_UNITS = 1e9  # what a limit of the loss is scaled to, so that it has a size like bytes
MANY = 50_000  # choices from which "auto" takes the hull


LOSS = "loss"
"""The resource that `smallest` limits."""


class Infeasible(Refused):
    """No choice meets all limits. `lacks`: resource -> how much its limit would have to give."""

    def __init__(self, message: str, lacks: dict[str, int]) -> None:
        super().__init__(message)
        self.lacks = lacks


@dataclass(frozen=True)
class Allocation:
    """`choice`: unit -> option. `loss` is the sum (or maximum) of the losses, `bound` proven to be below the best.

    `totals` and `prices` (loss that one more of the resource would save) go by resource, over all units.
    """

    choice: dict[str, str]
    loss: float
    bound: float
    totals: dict[str, int]
    prices: dict[str, float]
    method: str
    seconds: float

    @property
    def gap(self) -> float:
        """How far the loss may be above the best, relative to it; infinite where nothing was proven."""
        if self.loss <= self.bound:
            return 0.0
        return (self.loss - self.bound) / abs(self.loss) if np.isfinite(self.bound) else float("inf")


def allocate(
    units: Sequence[Unit],
    budgets: Sequence[Budget] = (),
    side: Side | None = None,
    objective: Objective = "sum",
    method: Method = "auto",
    gap: float = 1e-6,
    time_limit: float = 60.0,
) -> Allocation:
    """The option of every unit with the least sum (or maximum) of losses within all budgets.

    `exact` solves the integer program; `hull` (one upper budget) is for very many units; `rank` mixes two neighbouring
    options by importance and proves nothing. `Infeasible` says which limit is short, and by how much.
    """
    began = time.perf_counter()
    problem = build(units, budgets, side or Side(), objective)
    single = len(problem.rows) == 1 and not np.isfinite(problem.rows[0].low) and np.isfinite(problem.rows[0].high)
    if method == "auto":
        method = "hull" if single and objective == "sum" and len(problem.owner) > MANY else "exact"
    if method != "exact" and not (single and objective == "sum"):
        raise Refused(f"the method {method!r} takes one upper budget and a sum of losses: choose 'exact'.")
    solved = {
        "exact": lambda: exact(problem, objective, gap, time_limit),
        "hull": lambda: hull(problem),
        "rank": lambda: ranked(problem),
    }[method]()
    if solved is None:
        raise _infeasible(problem)
    priced = prices(problem) if objective == "sum" and len(problem.owner) <= MANY else [0.0] * len(problem.rows)
    names = [budget.resource if budget.where is None else None for budget in budgets]
    by_name = {name: price for name, price in zip(names, priced, strict=False) if name is not None}
    return _allocation(problem, solved, objective, by_name, method, time.perf_counter() - began)


def smallest(
    units: Sequence[Unit],
    resource: str,
    loss: float,
    side: Side | None = None,
    budgets: Sequence[Budget] = (),
    time_limit: float = 60.0,
) -> Allocation:
    """The least total of a resource with a sum of losses of at most `loss`, within budgets of other resources; among
    those, the least loss."""
    unlimited = build(units, [Budget(resource), *budgets], side or Side())
    limit = Row(LOSS, unlimited.loss * (LOSS_UNITS / max(loss, 1e-30)), -np.inf, LOSS_UNITS * (1 + 1e-9))
    costs = unlimited.rows[0].weights
    swapped = Problem(unlimited.classes, unlimited.labels, unlimited.owner, costs, (limit, *unlimited.rows[1:]))
    solved = exact(swapped, "sum", 1e-9, time_limit)
    if solved is None:
        raise _infeasible(swapped)
    least = int(costs[solved.chosen].sum())
    return allocate(units, [Budget(resource, least), *budgets], side, time_limit=time_limit)


def frontier(
    units: Sequence[Unit], resource: str, points: int = 20, side: Side | None = None, method: Method = "auto"
) -> list[Allocation]:
    """Best allocations from the smallest to the largest useful total of a resource, evenly spaced in its logarithm."""
    if points < 2:
        raise Refused("a frontier needs at least two points.")
    problem = build(units, [Budget(resource)], side or Side())
    cost = problem.padded(problem.rows[0].weights)
    least = float(cost.min(1).sum())
    losses = problem.padded(problem.loss)
    best = np.where(losses == losses.min(1, keepdims=True), cost, np.inf).min(1).sum()
    limits = [int(v) for v in np.geomspace(max(least, 1.0), max(float(best), least, 1.0), points)]
    limits[0], limits[-1] = int(least), int(best)
    return [allocate(units, [Budget(resource, limit)], side, method=method) for limit in limits]


def _allocation(
    problem: Problem, solved: Solved, objective: Objective, priced: dict[str, float], method: str, seconds: float
) -> Allocation:
    choice = {
        unit.name: problem.labels[i] for i, group in zip(solved.chosen, problem.classes, strict=True) for unit in group
    }
    taken = [option_of(unit, choice[unit.name]) for group in problem.classes for unit in group]
    resources = sorted({resource for option in taken for resource in option.costs})
    losses = [option.loss for option in taken]
    loss = max(losses) if objective == "max" else float(sum(losses))
    totals = {resource: sum(option.costs.get(resource, 0) for option in taken) for resource in resources}
    return Allocation(choice, loss, min(solved.bound, loss), totals, priced, method, seconds)


def option_of(unit: Unit, name: str) -> Option:
    """The option of a unit by name."""
    return next(option for option in unit.options if option.name == name)


def _infeasible(problem: Problem) -> Infeasible:
    """Which limits are short, by how much, and who takes most of them even at its cheapest."""
    parts, short = [], {}
    for row, below, above in lacks(problem):
        least = problem.padded(row.weights).min(1) if above else None
        if above:
            parts.append(
                f"{row.name}: at least {row.high + above:,.0f} needed, {row.high:,.0f} allowed, {above:,.0f} too few"
            )
        if below:
            parts.append(f"{row.name}: at most {row.low - below:,.0f} possible, {row.low:,.0f} asked for")
        if least is not None and least.sum() > row.high:
            largest = np.argsort(-least, kind="stable")[:3]
            told = ", ".join(f"{problem.classes[k][0].name} {least[k]:,.0f}" for k in largest)
            parts[-1] += f" (at their cheapest: {told})"
        short[row.name] = int(above or -below)
    return Infeasible(
        "no choice meets all limits; " + ("; ".join(parts) or "the side constraints exclude each other") + ".", short
    )
