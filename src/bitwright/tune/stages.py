"""Two stages in one: a quantization, then learning from the float model; each goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitwright.artifact.folder import beside, require_free
from bitwright.engine.job import Job
from bitwright.engine.journal import Journal
from bitwright.engine.run import Result, quantize
from bitwright.engine.settings import choose
from bitwright.models.source import open_source
from bitwright.tune import data
from bitwright.tune.ranks import Ranks
from bitwright.tune.run import Tuned, tune
from bitwright.tune.settings import Tuning

QUANTIZED = "quantized"  # the first stage


def start_of(out: Path) -> Path:
    """Where the result of the first stage lies until the second is done."""
    return beside(_stages(out), ".journal") / QUANTIZED


def carry_out(
    start: Job,
    tuning: Tuning,
    asked: Mapping[str, Any],
    first: Callable[[Job], Result],
    then: Callable[[Tuning], Tuned],
) -> tuple[dict[str, Any], Tuned]:
    """`first`, unless an earlier call finished it, then `then`; what the first told, and the second.

    `asked` is what else, beside the quantization, a repeated call must ask for. Of several processes (`Ranks`) the
    first carries out `first`.
    """
    ranks = Ranks()
    told: dict[str, Any] = {}
    if ranks.leads:
        settings = start.model_dump(mode="json", exclude={"out", "threads", "max_memory"})
        journal = Journal(_stages(tuning.out), {**settings, **asked})
        if journal.get(QUANTIZED) is None:
            shutil.rmtree(start.out, ignore_errors=True)  # of a run that ended before it could say so
            made = first(start)
            journal.put(QUANTIZED, {}, {"errors": made.errors, "unseen": made.unseen, "left": made.left})
        told = journal.notes(QUANTIZED)
    told = ranks.agreed(told)
    learned = then(tuning)
    if ranks.leads:
        shutil.rmtree(start.out)
        journal.remove()
    return told, learned


def train(
    job: Job, tuning: Tuning, first: Callable[[Job], Result] = quantize, then: Callable[[Tuning], Tuned] = tune
) -> Tuned:
    """Quantize a float model by a recipe and let the result learn; the same call after an interruption goes on.

    `job` and `tuning` write to the same place; `tuning.artifact` is `start_of` it. `BadInput` at once if the text is
    not enough for both.
    """
    require_free(job.out)
    if Ranks().leads:
        choose(job.recipe, job.settings, None, [])  # refuses what is no setting before the text is read
        source = open_source(job.model)
        data.require(tuning, source, data.available(tuning, source), job.calibration_tokens)
    start = job.model_copy(update={"out": tuning.artifact})
    return carry_out(start, tuning, {}, first, then)[1]


def _stages(out: Path) -> Path:
    return beside(out, ".stages")
