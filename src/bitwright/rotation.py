"""A fixed rotation of the inputs of a layer: signs, Walsh-Hadamard transforms of blocks, a Hartley transform of blocks.

It spreads what a few columns, or a head, have over all columns: values look more like Gaussian numbers, as codes want
them (incoherence, QuIP#, arXiv 2402.04396), and no activation stands out where they are rounded together.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from math import cos, pi, sin, sqrt
from typing import Any

import torch
from torch import Tensor

_core: Any
try:
    _core = import_module("bitwright._core")  # not through the package, which is above this file
except ImportError:  # the same sums in torch
    _core = None

LARGEST = 512  # columns of a block at most
MOST = 64  # blocks that are mixed with each other at most


def block_of(columns: int) -> int:
    """Columns that are mixed: the largest power of two up to 512 that divides their number."""
    return min(columns & -columns, LARGEST)


@cache
def factors(columns: int) -> Tensor:
    """Float32 [C], plus or minus a power of two: x becomes H (x * factors), H of ones and minus ones.

    Signs are bits of a hash of the column (the finalizer of MurmurHash3); the power keeps lengths, times the square
    root of two where a block is an odd power of two.
    """
    size = 0.5 ** ((block_of(columns).bit_length() - 1) // 2)
    signed = [size if _hash(column) & 1 else -size for column in range(columns)]
    return torch.tensor(signed, dtype=torch.float32, device="cpu")


@cache
def across(columns: int) -> Tensor | None:
    """Float32 [n, n] of n blocks: a discrete Hartley transform, symmetric, its own inverse. None: they stay apart."""
    blocks = columns // block_of(columns)
    if not 1 < blocks <= MOST:
        return None
    angles = [2 * pi * (i * k % blocks) / blocks for i in range(blocks) for k in range(blocks)]
    entries = [(cos(angle) + sin(angle)) / sqrt(blocks) for angle in angles]
    return torch.tensor(entries, dtype=torch.float32, device="cpu").view(blocks, blocks)


def spread(h: Tensor) -> Tensor:
    """The diagonal [C] that a diagonal Hessian gets where inputs are rotated."""
    columns = len(h)
    block, matrix = block_of(columns), across(columns)
    means = h.view(-1, block).mean(1) * growth(columns)
    if matrix is not None:
        means = matrix.to(h.dtype).square() @ means
    return means.repeat_interleave(block)


def growth(columns: int) -> float:
    """What the sum of squares of all inputs is multiplied by: 1 or 2."""
    return block_of(columns) * float(factors(columns)[0]) ** 2


def _hash(column: int) -> int:
    h = column + 1
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    return h


def rotated_inputs(x: Tensor) -> Tensor:
    """What activations [..., C] become; every operation rounded as in kernels."""
    return _mixed(x, factors(x.shape[-1]), None)


def rotated(w: Tensor) -> Tensor:
    """The weight [..., C] that gives with rotated inputs what `w` gives with the inputs."""
    return _mixed(w, _inverses(w.shape[-1]), None)


def restored(w: Tensor) -> Tensor:
    """Inverse of `rotated`, up to rounding; differentiable."""
    found: Tensor = _Restored.apply(w)  # type: ignore[no-untyped-call]
    return found


class _Restored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return _mixed(w, None, factors(w.shape[-1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return rotated_inputs(gradient)  # H is symmetric


@cache
def _inverses(columns: int) -> Tensor:
    """Powers of two too: no rounding."""
    return 1 / (factors(columns) * block_of(columns))


def _mixed(x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    """H (x * before) * after: sums and differences of columns 1, 2, 4, ... apart in each block, then sums of blocks."""
    columns = x.shape[-1]
    if _core is not None and x.dtype == torch.float32 and x.numel():
        rows = x.detach().reshape(-1, columns).contiguous()
        found = _core.mix(rows, before, after, block_of(columns), across(columns))
        return torch.from_numpy(found).view(x.shape)
    return plainly_mixed(x, before, after)


def plainly_mixed(x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    """The same without compiled code, to the same bits."""
    size, half = block_of(x.shape[-1]), 1
    y = x if before is None else x * before.to(x.dtype)
    while half < size:
        pairs = y.reshape(-1, 2, half)
        a, b = pairs[:, 0], pairs[:, 1]
        y = torch.stack((a + b, a - b), dim=1)
        half *= 2
    matrix = across(x.shape[-1])
    if matrix is not None:
        apart = y.reshape(-1, len(matrix), size)
        y = _sums(apart, matrix.to(y.dtype))
    y = y.reshape(x.shape)
    return y if after is None else y * after.to(y.dtype)


def _sums(apart: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ apart, products added in their order."""
    total = matrix[:, 0, None] * apart[:, 0, None]
    for k in range(1, len(matrix)):
        total = total + matrix[:, k, None] * apart[:, k, None]
    return total
