"""Exact choice by branch and bound (HiGHS through scipy), prices from its relaxation, and why nothing fits."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, hstack, vstack

from bitwright.allocate.problem import Objective, Problem, Row
from bitwright.errors import WorkFailed

OPTIMAL, LIMIT, INFEASIBLE = 0, 1, 2  # status of scipy
ROUNDS = 8  # of repair
LARGEST = 1e4  # loss that solvers see: their absolute tolerances are then far below the losses of good choices


@dataclass(frozen=True)
class Solved:
    """`chosen` [K] indexes choices; `bound` is a proven lower bound of the loss."""

    chosen: NDArray[np.int64]
    bound: float


def exact(problem: Problem, objective: Objective, gap: float, time_limit: float) -> Solved | None:
    """The choice of least loss; None if there is none. `WorkFailed` if the time did not suffice for any."""
    if objective == "max":
        return _least_maximum(problem, gap, time_limit)
    rows = list(problem.rows)
    for round_ in range(ROUNDS):
        found = _solve(problem, rows, gap, time_limit)
        if found is None:
            return None
        excess = violations(problem, found.chosen)
        if not excess:
            return found
        # The solver's tolerance was used up: ask for a little less, and for more than that if it insists.
        rows = [_tighter(row, *excess.get(i, (0.0, 0.0)), 2.0 * 4**round_) for i, row in enumerate(rows)]
    raise WorkFailed("the integer program keeps exceeding a budget by its tolerance: loosen the tightest budget.")


def _tighter(row: Row, below: float, above: float, factor: float) -> Row:
    return Row(row.name, row.weights, row.low + factor * below, row.high - factor * above)


def violations(problem: Problem, chosen: NDArray[np.int64]) -> dict[int, tuple[float, float]]:
    """Rows that the choice breaks: (missing below, too much above), in whole numbers."""
    found = {}
    for i, row in enumerate(problem.rows):
        total = row.weights[chosen].sum()
        below, above = max(row.low - total, 0.0), max(total - row.high, 0.0)
        if below or above:
            found[i] = (below, above)
    return found


def _assignment(problem: Problem) -> csr_array:
    n = len(problem.owner)
    return csr_array((np.ones(n), (problem.owner, np.arange(n))), shape=(len(problem.classes), n))


def _constraints(problem: Problem, rows: list[Row]) -> list[LinearConstraint]:
    found = [LinearConstraint(_assignment(problem), 1, 1)]
    if rows:
        scales = np.array([row.scale for row in rows])
        matrix = csr_array(np.stack([row.weights for row in rows]) / scales[:, None])
        low, high = (np.array([getattr(row, end) for row in rows]) / scales for end in ("low", "high"))
        found.append(LinearConstraint(matrix, low, high))
    return found


def _milp(*args: Any, **options: Any) -> Any:
    """scipy's `milp`, silent: HiGHS prints remarks of its developers where results of a command belong."""
    with _no_output():
        return milp(*args, **options)


@contextmanager
def _no_output() -> Iterator[None]:
    """Nothing written to file descriptor 1 meanwhile arrives, not even from C."""
    try:
        kept = os.dup(1)
    except OSError:  # closed: nothing can arrive
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        print(end="", flush=True)
        os.dup2(nowhere, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C holds back would arrive later
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def _solve(problem: Problem, rows: list[Row], gap: float, time_limit: float) -> Solved | None:
    n = len(problem.owner)
    scale = float(np.abs(problem.loss).max()) / LARGEST or 1.0
    result = _milp(
        problem.loss / scale,
        integrality=np.ones(n),
        bounds=Bounds(0, 1),
        constraints=_constraints(problem, rows),
        options={"mip_rel_gap": gap, "time_limit": time_limit},
    )
    if result.status == INFEASIBLE:
        return None
    if result.x is None:
        raise WorkFailed(f"the integer program found no choice in {time_limit:g} s: give it more time.")
    bound = result.mip_dual_bound
    return Solved(_chosen(problem, result.x), scale * bound if bound is not None else -np.inf)


def _chosen(problem: Problem, x: NDArray[np.float64]) -> NDArray[np.int64]:
    """The choice with the largest share in each class."""
    shares = problem.padded(x)
    best: NDArray[np.int64] = np.where(np.isinf(shares), -1.0, shares).argmax(1)
    return problem.starts[:-1] + best


def _least_maximum(problem: Problem, gap: float, time_limit: float) -> Solved | None:
    """First the least possible maximum, by bisection over the losses that occur; then the least sum below it."""
    levels = np.unique(problem.loss)
    low, high = 0, len(levels) - 1
    best: Solved | None = None
    while low <= high:
        middle = (low + high) // 2
        capped = _below(problem, levels[middle])
        found = exact(capped, "sum", gap, time_limit) if capped is not None else None
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle - 1
            kept = np.flatnonzero(problem.loss <= levels[middle])
            best = Solved(kept[found.chosen], float(levels[middle]))
    return best


def _below(problem: Problem, limit: float) -> Problem | None:
    """The problem without choices of a larger loss; None if a class loses all of its choices."""
    keep = problem.loss <= limit
    if len(np.unique(problem.owner[keep])) < len(problem.classes):
        return None
    rows = tuple(Row(r.name, r.weights[keep], r.low, r.high) for r in problem.rows)
    labels = tuple(label for label, kept in zip(problem.labels, keep, strict=True) if kept)
    return Problem(problem.classes, labels, problem.owner[keep], problem.loss[keep], rows)


def prices(problem: Problem) -> list[float]:
    """What one more unit of each row's limit would take off the loss, from the relaxation; negative at lower limits."""
    upper = [i for i, row in enumerate(problem.rows) if np.isfinite(row.high)]
    lower = [i for i, row in enumerate(problem.rows) if np.isfinite(row.low)]
    if not upper and not lower:
        return [0.0] * len(problem.rows)
    scale = float(np.abs(problem.loss).max()) / LARGEST or 1.0
    scales = [problem.rows[i].scale for i in (*upper, *lower)]
    matrix = [problem.rows[i].weights for i in upper] + [-problem.rows[i].weights for i in lower]
    limits = [problem.rows[i].high for i in upper] + [-problem.rows[i].low for i in lower]
    result = linprog(
        problem.loss / scale,
        A_ub=csr_array(np.stack(matrix) / np.array(scales)[:, None]),
        b_ub=np.array(limits) / scales,
        A_eq=_assignment(problem),
        b_eq=np.ones(len(problem.classes)),
        bounds=(0, 1),
        method="highs",
    )
    found = [0.0] * len(problem.rows)
    if result.status == OPTIMAL:
        for place, (i, own) in enumerate(zip((*upper, *lower), scales, strict=True)):
            sign = -1.0 if place < len(upper) else 1.0
            found[i] += sign * float(result.ineqlin.marginals[place]) * scale / own
    return found


def lacks(problem: Problem, time_limit: float = 20.0) -> list[tuple[Row, float, float]]:
    """How far limits would have to give until something fits: (row, missing below, too much above), least in all.

    Each limit may be exceeded at a price relative to its size; a row whose limits need not move is left out.
    """
    rows, n = list(problem.rows), len(problem.owner)
    scales = np.array([row.scale for row in rows])
    matrix = csr_array(np.stack([row.weights for row in rows]) / scales[:, None])
    identity = csr_array(np.eye(len(rows)))
    soft = hstack([matrix, identity, -identity])
    whole = hstack([_assignment(problem), csr_array((len(problem.classes), 2 * len(rows)))])
    low, high = (np.array([getattr(row, end) for row in rows]) / scales for end in ("low", "high"))
    ends = np.concatenate([np.ones(len(problem.classes)), low]), np.concatenate([np.ones(len(problem.classes)), high])
    result = _milp(
        np.concatenate([np.zeros(n), np.ones(2 * len(rows))]),
        integrality=np.concatenate([np.ones(n), np.zeros(2 * len(rows))]),
        bounds=Bounds(0, np.concatenate([np.ones(n), np.full(2 * len(rows), np.inf)])),
        constraints=LinearConstraint(vstack([whole, soft]), *ends),
        options={"time_limit": time_limit},
    )
    if result.x is None:
        return []
    broken = violations(problem, _chosen(problem, result.x[:n]))
    return [(rows[i], *amounts) for i, amounts in broken.items()]
