"""The chosen formats against one format for all blocks at the same size: both are made, the better one is kept."""

from __future__ import annotations

import json
import shutil

from pydantic import TypeAdapter

from bitwright.artifact.folder import beside, require_free
from bitwright.engine.job import Job
from bitwright.engine.journal import Journal
from bitwright.engine.quantize import Progress
from bitwright.engine.run import Result, quantize
from bitwright.engine.units import UNIFORM
from bitwright.errors import BadInput

CHOSEN = "chosen"


def require_size(job: Job) -> None:
    """`BadInput` if nothing says at which size to compare."""
    if job.target_bytes is None and job.target_bpw is None:
        raise BadInput("--verify-uniform compares at equal size: give --target-size or --target-bpw.")


def better(job: Job, progress: Progress = lambda what, done, of: None) -> tuple[Result, Result]:
    """The result that is in `job.out` now, and the other one, which is gone; goes on after an interruption.

    Takes twice the time. They are compared by their measured divergence; `BadInput` if the job has no target size.
    """
    require_size(job)
    require_free(job.out)
    settings = job.model_dump(mode="json", exclude={"out", "threads", "max_memory"})
    journal, stored = Journal(beside(job.out, ".rivals"), settings), TypeAdapter(Result)

    def made(name: str, score: str | None) -> Result:
        out = journal.folder / name
        if journal.get(name) is None:
            shutil.rmtree(out, ignore_errors=True)  # of a run that ended before it could say so
            result = quantize(job.model_copy(update={"out": out, "score": score}), progress)
            journal.put(name, {}, stored.dump_python(result, mode="json"))
        return stored.validate_json(json.dumps(journal.notes(name)))

    results = {UNIFORM: made(UNIFORM, UNIFORM), CHOSEN: made(CHOSEN, job.score)}
    # Of two equal ones the chosen one.
    kept, other = sorted(results, key=lambda name: (results[name].divergence, name != CHOSEN))
    (journal.folder / kept).rename(beside(job.out, ""))
    shutil.rmtree(journal.folder / other)
    journal.remove()
    return results[kept], results[other]
