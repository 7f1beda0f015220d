"""The text that a job is calibrated on, and what the model is sensitive to on it."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from bitwright.artifact.layout import Calibration
from bitwright.engine import settings
from bitwright.engine.estimate import sequence_length
from bitwright.engine.job import Job
from bitwright.engine.quantize import Progress
from bitwright.engine.workers import Workers, cores
from bitwright.errors import Refused
from bitwright.models.cache import cache_folder
from bitwright.models.skeleton import skeleton
from bitwright.models.structure import infer
from bitwright.recipe import Menu
from bitwright.sensitivity.scores import EXPERTS, MEASURED
from bitwright.sensitivity.table import Table

if TYPE_CHECKING:
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

SENSE = 4096  # tokens from which sensitivities are measured, of those the solver sees


def calibration(job: Job, source: Source, progress: Progress) -> tuple[Tensor, Calibration]:
    """Token ids int64 [S, T] and how the manifest names them."""
    from bitwright.calibrate import tokens
    from bitwright.calibrate.overlap import fingerprints

    length = sequence_length(job, source)
    count = max(1, job.calibration_tokens // length)
    if job.data:
        ids = tokens.drawn(tokens.of_files(source.tokenizer(), job.data, length), count, job.seed)
        name = " + ".join(path.name for path in job.data)
    else:
        refuse_whole_model(job, source, "sampling calibration text from the model itself", "give a text with --data")
        balance, experts = settings.choose(job.recipe, job.settings, None, [])[0].balance, _experts(source)
        key = f"samples-{source.digest()[:16]}-{count}x{length}-{job.seed}"
        name = "the model's own samples"
        make = partial(_samples, job, source, count, progress)
        if balance and experts:
            key, name = f"{key}-{balance}", f"{name}, balanced over experts"
            make = partial(_balanced, job, source, experts, balance, count, progress)
        ids = tokens.cached_tokens(cache_folder(), key, make)
    runs = fingerprints(ids)
    return ids, Calibration(data=name, sha256=tokens.token_hash(ids), tokens=ids.numel(), runs=runs)


def refuse_whole_model(job: Job, source: Source, what: str, instead: str) -> None:
    """`Refused` if the float model does not fit into the memory that the job may use."""
    size = 4 * sum(prod(source.shape(name)) for name in source.names())
    if job.max_memory is not None and size > job.max_memory:
        raise Refused(
            f"{what} needs the model in memory ({size / 1e6:.0f} MB, more than --max-memory "
            f"{job.max_memory / 1e6:.0f} MB): {instead}."
        )


def _samples(job: Job, source: Source, count: int, progress: Progress) -> Tensor:
    from bitwright.calibrate.tokens import self_samples
    from bitwright.runtime.load import load_float

    model = load_float(job.model)
    length = sequence_length(job, source)
    tokens = count * length
    return self_samples(
        model, source.tokenizer(), tokens, length, job.seed, lambda done, of: progress("sampling text", done, of)
    )


def _experts(source: Source) -> list[tuple[str, int]]:
    """What runs the experts of each block, and how many there are."""
    blocks = infer(skeleton(source.config)).blocks
    return [(f"{block.path}.{block.mixture}", block.experts[0].shape[0]) for block in blocks if block.mixture]


def _balanced(
    job: Job, source: Source, experts: list[tuple[str, int]], balance: float, count: int, progress: Progress
) -> Tensor:
    from bitwright.calibrate.balanced import balanced_samples
    from bitwright.runtime.load import load_float

    step = partial(progress, "sampling text")
    length = sequence_length(job, source)
    tokenizer = source.tokenizer()
    return balanced_samples(load_float(job.model), tokenizer, experts, balance, count, length, job.seed, step)


def sense(ids: Tensor) -> Tensor:
    """The sequences [S, T] on which sensitivities are measured."""
    return ids[: max(1, SENSE // ids.shape[1])]


def sensitivities(job: Job, menu: Menu, source: Source, structure: Structure, progress: Progress) -> Table:
    """The table of this model, calibration text and solver, with every format of the menu."""
    from bitwright.sensitivity.measure import Bench

    refuse_whole_model(job, source, "measuring sensitivities", "give --bits")
    recipe, _ = settings.choose(job.recipe, job.settings, None, [])
    ids, row = calibration(job, source, progress)
    ids = sense(ids)
    with Workers(job.threads or cores()) as workers:
        solvers = recipe.solver, recipe.embedding_solver
        bench = Bench(source, structure, ids, *solvers, cache_folder() / "sensitivity", workers.map, progress)
        tables = menu.tables if job.target_bpw is None else ()
        reference = menu.reference if menu.score in MEASURED else None
        return bench.table(menu.formats, tables, f"{row.sha256}-{len(ids)}", reference, menu.score == EXPERTS)
