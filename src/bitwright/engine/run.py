"""The whole job: plan, calibrate, quantize, write, verify."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.artifact.folder import draft, lock, require_free, writing
from bitwright.artifact.layout import Calibration, Manifest, Origin, expert_of
from bitwright.artifact.write import write_artifact, write_manifest
from bitwright.engine import settings
from bitwright.engine.allocation import Decision
from bitwright.engine.calibration import calibration, refuse_whole_model, sense, sensitivities
from bitwright.engine.elastic import Ranking
from bitwright.engine.estimate import BATCH, sequence_length, threads_for
from bitwright.engine.job import Job
from bitwright.engine.journal import Journal
from bitwright.engine.original import Original
from bitwright.engine.plan import Plan, make_plan, refuse_unreachable
from bitwright.engine.quantize import Probe, Progress, Run, block_part
from bitwright.engine.tables import solve_tables, table_part
from bitwright.engine.verify import verified
from bitwright.engine.workers import Workers, cores, product_type, return_memory_at_once
from bitwright.errors import Refused, WorkFailed
from bitwright.models.calls import BlockCall, record_calls, same_arguments
from bitwright.models.skeleton import skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.runtime.latency import step_seconds
from bitwright.runtime.load import load, load_float
from bitwright.sensitivity.measure import TEXT
from bitwright.sensitivity.perturb import Text, divergence
from bitwright.spec import to_spec

if TYPE_CHECKING:
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

PROBE = (4, 8)  # sequences and tokens


@dataclass(frozen=True)
class Result:
    """What a job made."""

    manifest: Manifest
    seconds: float
    errors: dict[str, float]  # relative output error of each block linear
    unseen: tuple[str, ...]  # experts that no calibration token reached
    decision: Decision | None = None  # of the allocator, if it chose the formats
    divergence: float | None = None  # what it predicted, measured: KL a token on calibration text
    tokens_per_second: float | None = None  # the same of the speed, where that was asked for
    left: tuple[tuple[str, str], ...] = ()  # (transform, linear): it had to leave the inputs as they are


Prepared = tuple["Source", "Structure", Plan]


def prepare(job: Job, progress: Progress = lambda what, done, of: None) -> Prepared:
    """Everything that is known before the work; all refusals of settings happen here.

    Where the allocator chooses formats, sensitivities are measured first, once for a model and calibration text.
    """
    source = open_source(job.model)
    structure = infer(skeleton(source.config))
    sequence_length(job, source)
    menu = settings.menu(job)
    if menu is None:
        plan = make_plan(job, source, structure)
        if plan.contents.steps:
            _refuse_unordered(job, source, structure, plan)
        return source, structure, plan
    if job.min_speed is not None and any(block.experts for block in structure.blocks):
        raise Refused("the time of experts depends on the text: leave out --min-speed.")
    refuse_unreachable(job, menu, source, structure)
    table = sensitivities(job, menu, source, structure, progress)
    return source, structure, make_plan(job, source, structure, table, progress)


def _refuse_unordered(job: Job, source: Source, structure: Structure, plan: Plan) -> None:
    """`Refused` where blocks of weights could be made, but not put in order."""
    if plan.recipe.transforms:
        raise Refused(
            "blocks of weights are put in order by the float weights, which transforms change: give one of them."
        )
    if any(block.experts for block in structure.blocks):
        raise Refused("blocks of stacked experts cannot be put in order: give a recipe without blocks, gptq say.")
    refuse_whole_model(job, source, "putting blocks in order", "give more memory, or a recipe without blocks")


def quantize(job: Job, progress: Progress = lambda what, done, of: None, prepared: Prepared | None = None) -> Result:
    """Carry out a job; the same call after an interruption goes on where it was, to the same bytes.

    `prepared` is what `prepare` gave for this job, if that was called before.
    """
    began = time.monotonic()
    require_free(job.out)
    if job.max_memory is not None:
        return_memory_at_once()
    with lock(job.out):
        source, structure, plan = prepared or prepare(job, progress)
        threads = threads_for(job, source, structure, plan.recipe)
        ids, row = calibration(job, source, progress) if plan.needs_text else (None, None)
        identity = _identity(job, source, plan, row)
        journal = Journal(job.out, identity)
        plan = plan.signed(_origin(plan, source, row, journal.fingerprint, job))
        with Workers(threads) as workers:
            seen = ids if plan.needs_inputs else None
            run = _start(plan, source, structure, journal, workers, seen, progress)
            run.blocks()
            solve_tables(run)
            tensor = _stored(plan, source, structure, journal)
            ranking = None
            if plan.contents.steps:
                assert ids is not None
                assert row is not None
                ranking = Ranking(source, structure, plan, journal, tensor, sense(ids), row, progress)
                plan = plan.ordered(ranking.steps(workers))
        progress("writing", 0, 1)
        with draft(job.out) as folder:
            manifest = write_artifact(folder, plan.contents, tensor, source.save_companions)
            progress("verifying", 0, 1)
            manifest = verified(folder, plan.contents, tensor, manifest)
            manifest = manifest.model_copy(update={"skipping": run.skipping})
            if ranking is not None:
                with Workers(threads) as workers:
                    manifest = manifest.model_copy(update={"elastic": ranking.curve(folder, workers)})
            write_manifest(folder, manifest)
        errors = _errors(structure, journal)
        journal.remove()
    measured = None if plan.decision is None or ids is None else _divergence(job, ids, progress)
    speed = 1 / step_seconds(load(job.out), job.threads or cores()) if job.min_speed is not None else None
    took = time.monotonic() - began
    return Result(manifest, took, errors, tuple(run.unseen), plan.decision, measured, speed, tuple(run.left))


def _divergence(job: Job, ids: Tensor, progress: Progress) -> float:
    """KL divergence of the written model from the float one, where sensitivities were measured."""
    progress("comparing with the float model", 0, 1)
    text = Text.of(load_float(job.model), ids, TEXT)
    return divergence(load(job.out), text)


def _identity(job: Job, source: Source, plan: Plan, row: Calibration | None) -> dict[str, Any]:
    """Everything that decides the bytes of the result."""
    return {
        "bitwright": plan.contents.origin.bitwright,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "products": str(product_type()),
        "model": source.digest(),
        "version": plan.contents.quantization.version,
        "quantization": plan.contents.quantization.model_dump(mode="json")["weights"],
        "recipe": to_spec(plan.recipe),
        "calibration": row.model_dump(mode="json") if row else None,
        "batch": BATCH,
        "seed": job.seed,
    }


def _origin(plan: Plan, source: Source, row: Calibration | None, fingerprint: str, job: Job) -> Origin:
    return plan.contents.origin.model_copy(
        update={
            "calibration": row,
            "lineage": source.lineage(),
            "seeds": {"calibration": job.seed},
            "fingerprint": fingerprint,
        }
    )


def _start(
    plan: Plan,
    source: Source,
    structure: Structure,
    journal: Journal,
    workers: Workers,
    ids: Tensor | None,
    progress: Progress,
) -> Run:
    """Inputs of the first block, in a mapped file, and the arguments that the model gives each block."""
    model = skeleton(source.config)
    if ids is None:
        return Run(plan, source, structure, model, journal, workers, BATCH, progress)
    hidden: Tensor | None = None
    calls: dict[int, list[BlockCall]] = {}
    for start in range(0, len(ids), BATCH):
        part, own = record_calls(model, source, structure, ids[start : start + BATCH])
        if not same_arguments(calls.setdefault(len(part), own), own):
            raise Refused(f"the blocks of {source.name} get arguments that depend on the text, which is not supported.")
        if hidden is None:
            shape = (len(ids), *part.shape[1:])
            hidden = _mapped(journal.folder / "hidden.bin", shape)
        hidden[start : start + BATCH] = part
    assert hidden is not None
    few, own = record_calls(model, source, structure, ids[: PROBE[0], : PROBE[1]].contiguous())
    probe = Probe(torch.randn(few.shape, generator=torch.Generator().manual_seed(0)), own)
    if plan.recipe.refiner is not None:
        calls.setdefault(1, record_calls(model, source, structure, ids[:1])[1])
    targets = None if plan.recipe.refiner is None else _mapped(journal.folder / "targets.bin", tuple(hidden.shape))
    original = None
    if plan.recipe.drift:
        original = Original(_mapped(journal.folder / "original.bin", tuple(hidden.shape)).copy_(hidden), BATCH)
    return Run(
        plan, source, structure, model, journal, workers, BATCH, progress, hidden, calls, probe, targets, original
    )


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Float32 memory that is a file; its blocks are reserved first, as a full disk would end the process later."""
    with writing(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * prod(shape))
        else:
            file.truncate(4 * prod(shape))
    return torch.from_file(str(path), shared=True, size=prod(shape), dtype=torch.float32).view(shape)


def _stored(plan: Plan, source: Source, structure: Structure, journal: Journal) -> Callable[[str], Tensor]:
    """Tensors of the artifact by name: finished parts of the journal, and what stays as the source has it."""
    kept = plan.contents.kept
    owner = {
        f"{block.path}.{name}": index
        for index, block in enumerate(structure.blocks)
        for name in (*block.linears, *(experts.name for experts in block.experts))
    }

    blocks = [f"{block.path}." for block in structure.blocks]
    parts = lru_cache(maxsize=2)(journal.get)  # hashed when opened: not once for every plane

    def of(part: str) -> dict[str, Tensor]:
        found = parts(part)
        if found is None:
            raise WorkFailed(f"{journal.folder} lost the part {part} while it was used: run the same command again.")
        return found

    def read(name: str) -> Tensor:
        if name in kept:
            index = next((i for i, path in enumerate(blocks) if name.startswith(path)), None)
            changed = {} if index is None or not plan.recipe.transforms else of(block_part(index))
            return changed[name] if name in changed else source.tensor(name)
        weight = name.rpartition(".")[0]
        stack, _ = expert_of(weight) or (weight, None)
        return of(table_part(weight) if weight in plan.contents.parts else block_part(owner[stack]))[name]

    return read


def _errors(structure: Structure, journal: Journal) -> dict[str, float]:
    found: dict[str, float] = {}
    for index in range(len(structure.blocks)):
        found |= journal.notes(block_part(index))["errors"]
    return found
