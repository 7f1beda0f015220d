"""Choice by rank (Layer-Wise Quantization, arXiv 2406.17415): the most important units get the next larger option.

Only two neighbouring options are mixed. As the budget grows, units move from one to the next in order of importance
until all have it, then to the one after.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.exact import Solved
from bitwright.allocate.problem import Problem
from bitwright.errors import Refused


def ranked(problem: Problem) -> Solved | None:
    """Importance of a class: what it gains from the smaller to the larger option. None if nothing fits.

    Classes that have one option keep it; all others need the same options, each costing more than the one before.
    """
    row, starts = problem.rows[0], problem.starts
    many = [k for k in range(len(problem.classes)) if starts[k + 1] - starts[k] > 1]
    kinds = {problem.labels[starts[k] : starts[k + 1]] for k in many}
    if len(kinds) > 1:
        raise Refused("ranking needs the same options for every unit: leave out the others, or choose method 'exact'.")
    chosen = starts[:-1].copy()
    fixed = row.weights[chosen].sum() - row.weights[chosen[many]].sum()
    if not many:
        return Solved(chosen, -np.inf) if fixed <= row.high else None
    choices = starts[many][:, None] + np.arange(len(next(iter(kinds))))
    cost, loss = row.weights[choices], problem.loss[choices]
    order = np.argsort(cost.sum(0), kind="stable")
    cost, loss, choices = cost[:, order], loss[:, order], choices[:, order]
    level = int((fixed + cost.sum(0) <= row.high).sum()) - 1
    if level < 0:
        return None
    chosen[many] = choices[:, level]
    if level + 1 < len(order):
        importance = loss[:, level] - loss[:, level + 1]
        first = np.argsort(-importance, kind="stable")
        spent = fixed + cost[:, level].sum() + np.cumsum((cost[:, level + 1] - cost[:, level])[first])
        raised = first[: int((spent <= row.high).sum())]
        chosen[np.array(many)[raised]] = choices[raised, level + 1]
    return Solved(chosen, -np.inf)
