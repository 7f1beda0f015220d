"""Parts of a learning step beside torch's own, on one thread, as each sequence of a batch runs.

Attention (9 heads of 64 that share 3 of keys, as in SmolLM2-135M) and divergence (49,152 tokens) of a sequence of 512,
forward and back, in the type of products. Median milliseconds of runs in turns. Run:

    python benchmarks/learning.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.engine.workers import product_type
from bitwright.runtime import native
from bitwright.tune.attention import causal
from bitwright.tune.loss import divergence

RUNS = 15
LENGTH, HEADS, KEYS, DIM, VOCABULARY = 512, 9, 3, 64, 49152


def in_turns(*parts: Callable[[], object]) -> list[float]:
    """Median milliseconds of each."""
    times: list[list[float]] = [[] for _ in parts]
    for _ in range(RUNS + 1):
        for part, own in zip(parts, times, strict=True):
            start = perf_counter()
            part()
            own.append(1e3 * (perf_counter() - start))
    return [median(own[1:]) for own in times]


def attention(dtype: torch.dtype) -> list[float]:
    """Ours, torch's."""
    shapes = [(1, heads, LENGTH, DIM) for heads in (HEADS, KEYS, KEYS)]
    given = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    upstream = torch.randn(shapes[0], dtype=dtype)

    def run(attend: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(attend(*given), given, upstream)

    scale = DIM**-0.5
    return in_turns(
        lambda: run(lambda q, k, v: causal(q, k, v, scale)),
        lambda: run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)),
    )


def loss(dtype: torch.dtype) -> list[float]:
    """Compiled, by torch."""
    student = torch.randn(LENGTH, VOCABULARY).to(dtype).requires_grad_()
    parent = torch.randn(LENGTH, VOCABULARY).to(dtype)

    def run() -> object:
        return torch.autograd.grad(divergence(student, parent.clone()), student)

    def by_torch() -> object:
        with mock.patch.object(native, "available", return_value=(False, "")):
            return run()

    return in_turns(run, by_torch)


def main() -> None:
    """Both parts."""
    torch.set_num_threads(1)
    dtype = product_type()
    for name, part in (("attention", attention), ("divergence", loss)):
        ours, theirs = part(dtype)
        print(f"{name}, {dtype}: {ours:.1f} ms, torch {theirs:.1f} ms, {theirs / ours:.1f} times")


if __name__ == "__main__":
    main()
