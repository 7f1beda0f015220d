"""Memory and time of a job, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import torch

from bitwright.engine.job import Job
from bitwright.engine.plan import Plan, block_weights
from bitwright.engine.workers import cores
from bitwright.errors import Refused
from bitwright.linalg import Hessian
from bitwright.recipe import Recipe

if TYPE_CHECKING:
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

FINISH = 10.0  # seconds to write and verify
BATCH = 4  # sequences that run through a block together; another number would give other last bits
PASSES = 2.2  # runs through a block: once up to each wave, once to its end


def peak_bytes(job: Job, source: Source, structure: Structure, recipe: Recipe, threads: int | None = None) -> int:
    """Memory that a job needs beside the imported libraries: a block, its Hessian and factors, activations.

    Where weights make up for drift, the float block, before and after transforms, its inputs and their drift as well.

    Calibration activations between blocks and the source's weights are mapped files and do not count.
    """
    threads = threads or job.threads or cores()
    shapes = [shape for _, shape in block_weights(source, structure)]
    blocks = len(structure.blocks)
    both = 2 if recipe.drift else 1
    copies = both + bool(recipe.drift and recipe.transforms)
    block = copies * 4 * sum(prod(shape) for shape in shapes) // blocks
    columns = max(shape[-1] for shape in shapes)
    widest = sum(shape[-1] + shape[-2] for shape in shapes) // blocks
    activations = 4 * threads * BATCH * sequence_length(job, source) * widest
    # grams of the tasks under way and waiting, their float64 sum
    observing = columns**2 * both * (4 * (threads + 2) + 8) + activations
    # the Hessian, that of rotated inputs and two float64 matrices, a third inside LAPACK
    factorising = columns**2 * (2 * 4 + 3 * 8)
    largest = max(shape[-1] * shape[-2] for shape in shapes)
    solving = columns**2 * (2 * 4 + 8 + 4 + (both - 1) * 12) + 6 * 4 * largest * min(threads, 2)
    return int(block + max(observing, factorising, solving))


def threads_for(job: Job, source: Source, structure: Structure, recipe: Recipe) -> int:
    """The most threads, up to those asked for, that keep to `max_memory`. They change the speed, not the result."""
    most = job.threads or cores()
    if job.max_memory is None:
        return most
    for threads in range(most, 0, -1):
        if peak_bytes(job, source, structure, recipe, threads) <= job.max_memory:
            return threads
    need = peak_bytes(job, source, structure, recipe, 1)
    raise Refused(
        f"one block of this model needs about {need / 1e6:.0f} MB, more than --max-memory "
        f"{job.max_memory / 1e6:.0f} MB: raise it, or give a smaller --length."
    )


def sequence_length(job: Job, source: Source) -> int:
    """Tokens of a calibration sequence: as asked for, or 512 where the model reads that many."""
    return readable(source, job.length, "--length ")


def readable(source: Source, length: int | None, option: str) -> int:
    """A length of sequences that the model reads, 512 at most if none is given; `Refused` names the option."""
    positions = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if length is None:
        return min(512, positions or 512)
    if positions is not None and length > positions:
        raise Refused(
            f"{source.name} reads at most {positions} tokens, not {length}: give {option}{positions} or less."
        )
    return length


def seconds(job: Job, source: Source, plan: Plan, structure: Structure) -> float:
    """Rough duration from a probe of this machine: matrix products and one small solved layer."""
    threads = job.threads or cores()
    weights = sum(prod(shape) for _, shape in block_weights(source, structure))
    solver = plan.recipe.solver
    rate = _products_per_second()
    both = 2 if plan.recipe.drift else 1
    forward = both * PASSES * weights * job.calibration_tokens / rate / threads if plan.needs_inputs else 0.0
    shapes = dict(block_weights(source, structure))
    inputs = [shapes[f"{block.path}.{wave[0]}"][-1] for block in structure.blocks for wave in block.waves]
    grams = both * sum(c**2 for c in inputs) * job.calibration_tokens / rate / threads if solver.needs_hessian else 0.0
    return forward + grams + weights * _solve_seconds(plan) / min(threads, 2) + FINISH


def _products_per_second() -> float:
    """Multiply-adds a second of one thread."""
    x = torch.ones(512, 512)
    return 512**3 / _probe(lambda: x @ x)


def _solve_seconds(plan: Plan) -> float:
    """Seconds a weight of the recipe's own solver on a small layer."""
    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    solver, fmt = plan.recipe.solver, plan.recipe.format
    return _probe(lambda: solver.solve(w, fmt, Hessian(torch.eye(256), 256))) / w.numel()


def _probe(task: Callable[[], object]) -> float:
    """Seconds of a task on one thread, as workers run it: the quickest of three after one to warm up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    took = []
    for _ in range(4):
        began = time.perf_counter()
        task()
        took.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return min(took[1:])
