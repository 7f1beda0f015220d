"""Presets: bits spread over tensors by measurement, then distillation for as long as one wants to wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from bitwright.artifact.folder import require_free
from bitwright.engine.job import Job
from bitwright.engine.run import Result, quantize
from bitwright.errors import BadInput
from bitwright.learning import Learning
from bitwright.models.source import open_source
from bitwright.tune import data
from bitwright.tune.run import Tuned, tune
from bitwright.tune.settings import Tuning
from bitwright.tune.stages import carry_out, start_of

RECIPE = "qtip"
MINUTES = {"fast": 0.0, "default": 9.0, "best": 140.0}  # of distillation
TOKENS = 61_440  # of given text that presets which learn calibrate on
LEARNING = Learning(rate=6e-3, parameter_rate=8e-3, vector_rate=2e-3, per_bit=2.0, batch=2, encode_every=4, hidden=0.1)
"""For trellis codes: a scale serves a whole row and may move fast; few codes change between two steps."""


def job_of(job: Job, quality: str) -> Job:
    """The quantization that a preset starts with: `job` with the recipe of presets, its bits spread over tensors.

    Where distillation follows, its result lies in the journal of the preset. `BadInput` on an unknown quality, and
    where nothing says how small.
    """
    if quality not in MINUTES:
        raise BadInput(f"--quality {quality}: give one of {', '.join(MINUTES)}.")
    if all(asked is None for asked in (job.bits, job.target_bpw, job.target_bytes, job.max_kl)):
        raise BadInput("--quality needs to know how small: give --bits 2.06, --target-size 45MB or --max-kl 0.2, say.")
    out = start_of(job.out) if MINUTES[quality] else job.out
    tokens = job.tokens or (TOKENS if MINUTES[quality] and job.data else job.calibration_tokens)
    bits = job.bits or job.target_bpw
    return job.model_copy(update={"recipe": RECIPE, "bits": None, "target_bpw": bits, "tokens": tokens, "out": out})


def make(
    job: Job,
    quality: str,
    first: Callable[[Job], Result] = quantize,
    then: Callable[[Tuning], Tuned] = tune,
) -> Result:
    """Carry out a preset; the same call after an interruption goes on where it was, other settings are refused.

    It calibrates on and learns from the texts of `job`. `first` and `then` do the work, and may tell of it.
    """
    began = time.monotonic()
    require_free(job.out)
    start = job_of(job, quality)
    if start.out == job.out:
        return first(start)
    tuning = Tuning(
        artifact=start.out,
        out=job.out,
        data=job.data,
        minutes=MINUTES[quality],
        learning=LEARNING,
        seed=job.seed,
        threads=job.threads,
    )
    if job.data:
        source = open_source(job.model)
        found = data.available(tuning, source)
        tokens = start.calibration_tokens if job.tokens else min(start.calibration_tokens, found // 2)
        start = start.model_copy(update={"tokens": tokens})
        data.require(tuning, source, found, tokens)
    told, learned = carry_out(start, tuning, {"quality": quality}, first, then)
    left = tuple((kind, name) for kind, name in told["left"])
    return Result(learned.manifest, time.monotonic() - began, told["errors"], tuple(told["unseen"]), left=left)
