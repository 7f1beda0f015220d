"""The chosen formats against one format for all blocks at the same size: both are made, the better one is kept."""

from __future__ import annotations

import shutil

from bitwright.artifact.folder import beside, require_free
from bitwright.engine.job import Job
from bitwright.engine.quantize import Progress
from bitwright.engine.run import Result, quantize
from bitwright.engine.units import UNIFORM
from bitwright.errors import BadInput


def better(job: Job, progress: Progress = lambda what, done, of: None) -> tuple[Result, Result]:
    """The result that is in `job.out` now, and the other one, whose folder (`OUT.uniform` at first) is gone.

    Takes twice the time. They are compared by their measured divergence; `BadInput` if the job has no target size.
    """
    if job.target_bytes is None and job.target_bpw is None:
        raise BadInput("--verify-uniform compares at equal size: give --target-size or --target-bpw.")
    rival = job.model_copy(update={"out": beside(job.out, ".uniform"), "score": UNIFORM})
    for out in (job.out, rival.out):
        require_free(out)
    uniform, chosen = quantize(rival, progress), quantize(job, progress)
    assert uniform.divergence is not None
    assert chosen.divergence is not None
    if uniform.divergence < chosen.divergence:
        shutil.rmtree(job.out)
        rival.out.rename(job.out)
        return uniform, chosen
    shutil.rmtree(rival.out)
    return chosen, uniform
