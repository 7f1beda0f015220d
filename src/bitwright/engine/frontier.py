"""What every size would cost: the allocator's plans from the smallest file to the largest of use."""

from __future__ import annotations

import sys

from bitwright.engine import settings
from bitwright.engine.calibration import sensitivities
from bitwright.engine.job import Job
from bitwright.engine.plan import Plan, make_plan, smallest_plan
from bitwright.engine.quantize import Progress
from bitwright.errors import BadInput, Unreachable
from bitwright.models.skeleton import skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer


def frontier(job: Job, points: int, progress: Progress = lambda what, done, of: None) -> list[Plan]:
    """Plans by size of the file, spaced evenly in its logarithm, each with its `decision`.

    The job names no target. `BadInput` for recipes without a choice to offer, or for fewer than two points.
    """
    if points < 2:
        raise BadInput("a frontier needs at least two points.")
    unlimited = job.model_copy(update={"target_bytes": sys.maxsize})
    source = open_source(job.model)
    structure = infer(skeleton(source.config))
    menu = settings.menu(unlimited)
    if menu is None:
        raise BadInput(f"the recipe {job.recipe} does not spread bits over tensors: choose another one.")
    table = sensitivities(unlimited, menu, source, structure, progress)
    least = smallest_plan(unlimited, menu, source, structure).file_bytes
    most = make_plan(unlimited, source, structure, table, progress).file_bytes
    plans: dict[int, Plan] = {}  # by size: neighbouring targets can have one answer
    for i in range(points):
        progress("allocating", i, points)
        target = round(least * (most / least) ** (i / (points - 1)))
        try:
            plan = make_plan(job.model_copy(update={"target_bytes": target}), source, structure, table, progress)
        except Unreachable:
            # What a recipe asks beside the size (experts at several widths, say) can need more than the smallest file.
            if i + 1 == points:
                raise
            continue
        plans[plan.file_bytes] = plan
    return [plans[size] for size in sorted(plans)]
