"""Embedding and untied head, a strip of rows at a time; only what multiplies as head has statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.calibrate.observe import Gram, hessian
from bitwright.engine.workers import quick_products
from bitwright.errors import BadInput, WorkFailed
from bitwright.linalg import Hessian
from bitwright.models.calls import head_inputs
from bitwright.solvers.rtn import Rtn

if TYPE_CHECKING:
    from bitwright.engine.plan import Plan
    from bitwright.engine.quantize import Run
    from bitwright.models.structure import Structure

STRIP = 4096  # rows solved at a time; a multiple of a tile


def table_part(name: str) -> str:
    """The journal's name of an embedding or head."""
    return name.replace(".", "-")


def head_is_solved(plan: Plan, structure: Structure) -> bool:
    """Whether something needs the statistics of the inputs of the head."""
    solver = plan.recipe.embedding_solver
    return solver is not None and solver.needs_hessian and any(_is_head(n, structure) for n in plan.contents.parts)


def solve_tables(run: Run) -> None:
    """Every table that the journal does not hold, once the inputs of the head are there."""
    for name in run.plan.contents.parts:
        if run.journal.get(table_part(name)) is None:
            run.progress(name, 0, 1)
            needed = head_is_solved(run.plan, run.structure) and _is_head(name, run.structure)
            run.journal.put(table_part(name), _table(run, name, _head_hessian(run) if needed else None), {})


def _is_head(name: str, structure: Structure) -> bool:
    return (structure.tied and name == structure.embedding) or name == structure.head


def _head_hessian(run: Run) -> Hessian | None:
    inputs = (head_inputs(run.model, run.source, run.structure, batch) for batch in run.batches())
    with quick_products():
        return hessian(map(Gram.of, inputs), "the head")


def _table(run: Run, name: str, statistics: Hessian | None) -> dict[str, Tensor]:
    rows = run.source.shape(name + ".weight")[0]
    fmt, solver = run.plan.formats[name], run.plan.recipe.embedding_solver or Rtn()

    def strip(start: int) -> dict[str, Tensor]:
        ids = torch.arange(start, min(start + STRIP, rows))
        w = run.source.rows(name + ".weight", ids).float()
        if not bool(w.isfinite().all()):
            raise BadInput(f"the weight {name} of {run.source.name} holds NaN or infinite values.")
        q = solver.solve(w, fmt, statistics)
        if not bool(q.dequantize().isfinite().all()):
            raise WorkFailed(f"quantizing {name} gave non-finite weights: give the embedding another format.")
        return q.planes

    strips = list(run.workers.map(strip, range(0, rows, STRIP)))
    return {f"{name}.{role}": torch.cat([s[role] for s in strips]) for role in strips[0]}
