"""How long one token takes here: one product of a format and shape, and a whole step of the engine.

Weights are read from memory as in a model: a product runs over so many copies that they are as long as the weights of
the model. Values do not change the time, so nothing has to be quantized. The fastest of several runs counts: what else
the machine does only adds to the others.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.protocols import Format, PlaneSpec
from bitwright.runtime.engine import build
from bitwright.runtime.native import native_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RUNS = 5
CONTEXT, DECODED = 16, 32  # tokens of one timed decoding


def blank(spec: PlaneSpec) -> Tensor:
    """A plane of zeros that are really in memory: pages that were never written share one."""
    return torch.empty(spec.shape, dtype=spec.dtype).zero_()


def product_seconds(fmt: Format, shape: tuple[int, int], stretch: int) -> float:
    """Seconds of W x for one token on one thread, W [R, C]; copies of W are read in turn, `stretch` bytes in all."""
    specs = fmt.planes(shape)
    count = max(1, round(stretch / sum(spec.bytes for spec in specs.values())))
    planes = [{role: blank(spec) for role, spec in specs.items()} for _ in range(count)]
    matrices = [native_matrix(fmt.terms(own, shape), shape, None).core for own in planes]
    x = torch.ones(1, shape[1])
    times = []
    for _ in range(RUNS + 1):  # the first warms up
        start = perf_counter()
        for matrix in matrices:
            matrix.matmul(x, 1)
        times.append(perf_counter() - start)
    return min(times[1:]) / count


def step_seconds(model: PreTrainedModel, threads: int) -> float:
    """Seconds of one decoded token behind a short context, sampling included; `Refused` without an engine for it."""
    core = build(model, threads).core
    context = min(CONTEXT, model.config.max_position_embeddings - DECODED - 1)
    core.forward([1] * context)
    times = []
    for _ in range(RUNS + 1):
        core.truncate(context)
        start = perf_counter()
        core.generate([1], DECODED, lambda _: True, chunk=DECODED)
        times.append(perf_counter() - start)
    return min(times[1:]) / DECODED
