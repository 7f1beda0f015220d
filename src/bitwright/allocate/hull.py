"""Lagrangian choice under one upper budget, for very many units: milliseconds a million options.

For a price mu every class takes the option of least loss + mu * cost, which lies on the lower hull of its options;
mu is found by bisection, and what is left of the budget is spent on the best upgrades (Everett 1963; llama.cpp's
`--target-bpw` uses the same scheme).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitwright.allocate.exact import Solved
from bitwright.allocate.problem import Problem

STEPS = 100  # of bisection: to the last bit of the price
UPGRADES = 20  # passes over the units that spend the rest

Floats = NDArray[np.float64]


def hull(problem: Problem) -> Solved | None:
    """A choice within the first row's upper limit and a lower bound of the loss; None if nothing fits."""
    loss, cost = problem.padded(problem.loss), problem.padded(problem.rows[0].weights)
    chosen, bound = hull_arrays(loss, cost, problem.rows[0].high)
    return None if chosen is None else Solved(problem.starts[:-1] + chosen, bound)


def hull_arrays(loss: Floats, cost: Floats, upper: float) -> tuple[NDArray[np.int64] | None, float]:
    """The same on tables [K, options], infinite where a class has fewer options: chosen [K] and the bound."""
    if float(cost.min(1).sum()) > upper:
        return None, np.inf
    order = np.argsort(cost, axis=1, kind="stable")  # among equals the cheapest wins
    loss, cost = np.take_along_axis(loss, order, 1), np.take_along_axis(cost, order, 1)
    chosen, bound = _priced(loss, cost, upper)
    chosen = _spend(loss, cost, chosen, upper)
    return np.take_along_axis(order, chosen[:, None], 1)[:, 0], bound


def _at(table: Floats, chosen: NDArray[np.int64]) -> Floats:
    return np.take_along_axis(table, chosen[:, None], 1)[:, 0]


def _priced(loss: Floats, cost: Floats, upper: float) -> tuple[NDArray[np.int64], float]:
    def at(price: float) -> tuple[NDArray[np.int64], float, float]:
        chosen = (loss + price * np.where(np.isinf(cost), 0.0, cost)).argmin(1)
        spent, lost = float(_at(cost, chosen).sum()), float(_at(loss, chosen).sum())
        return chosen, spent, lost + price * (spent - upper)

    chosen, spent, bound = at(0.0)
    if spent <= upper:
        return chosen, float(_at(loss, chosen).sum())
    finite = np.isfinite(loss)
    low, high = 0.0, float(np.ptp(loss[finite]) or 1.0) / max(float(np.ptp(cost[finite])), 1.0)
    while (trial := at(high))[1] > upper:
        low, high, bound = high, high * 4, max(bound, trial[2])
    best, bound = trial[0], max(bound, trial[2])
    for _ in range(STEPS):
        middle = (low + high) / 2
        chosen, spent, dual = at(middle)
        bound = max(bound, dual)
        if spent <= upper:
            best, high = chosen, middle
        else:
            low = middle
        if high - low <= 1e-12 * high:
            break
    return best, bound


def _spend(loss: Floats, cost: Floats, chosen: NDArray[np.int64], upper: float) -> NDArray[np.int64]:
    """Upgrades by gain for cost until no class has one that fits."""
    chosen = chosen.copy()
    left = upper - float(_at(cost, chosen).sum())
    for _ in range(UPGRADES):
        gain = _at(loss, chosen)[:, None] - loss
        more = cost - _at(cost, chosen)[:, None]
        possible = (gain > 0) & (more <= left)
        rate = np.where(possible, gain / np.maximum(more, 1e-9), -np.inf)
        best = rate.argmax(1)
        order = np.argsort(-_at(rate, best), kind="stable")
        order = order[np.isfinite(_at(rate, best)[order])]
        if not len(order):
            break
        for k in order:
            if more[k, best[k]] <= left:
                left -= float(more[k, best[k]])
                chosen[k] = best[k]
    return chosen
