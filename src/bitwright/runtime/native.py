"""Compiled kernels: whether they run here, and matrices that use them.

`BITWRIGHT_ISA` chooses the instruction-set level ("avx512-vnni", "avx-vnni",
"avx2", "neon-i8mm", "neon-dot", "portable"); "none" switches kernels off.
At first use every kind of kernel of the level is compared with the plain reference; a level that differs is not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.errors import BadInput
from bitwright.protocols import Dense, Sparse, Term
from bitwright.rotation import factors, plainly_mixed, rotated_inputs

if TYPE_CHECKING:
    from bitwright import _core

ROWS, COLUMNS, GROUP = 40, 200, 80  # of the self-test: nothing is a multiple of a tile, a unit or a vector
WIDE = 384  # columns that are rotated in blocks of several vectors


class NativeMatrix:
    """A packed weight [R, C] that compiled kernels multiply."""

    def __init__(self, matrix: _core.Matrix) -> None:
        self.core = matrix
        self.shape = matrix.shape

    @property
    def nbytes(self) -> int:
        """Bytes read for one token."""
        return self.core.nbytes

    def matmul(self, x: Tensor) -> Tensor:
        """Float32 [T, C] -> [T, R], with as many threads as torch uses."""
        if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != self.shape[1]:
            raise BadInput(
                f"activations are {x.dtype} {list(x.shape)}: give float32 [tokens, {self.shape[1]}] to this matrix."
            )
        return torch.from_numpy(self.core.matmul(x.detach().contiguous(), torch.get_num_threads()))


def native_matrix(terms: tuple[Term, ...], shape: tuple[int, int], bias: Tensor | None) -> NativeMatrix:
    """A matrix [R, C] from its terms; `BadInput` where their shapes or types do not fit. Aligned tensors are viewed."""
    from bitwright import _core

    try:
        return NativeMatrix(_core.Matrix(terms, *shape, None if bias is None else bias.detach().float().contiguous()))
    except (ValueError, TypeError) as error:
        raise BadInput(f"a weight of shape {list(shape)} cannot be multiplied: {error}.") from None


def available() -> tuple[bool, str]:
    """Whether compiled kernels are used, and why."""
    name, reason = _choice()
    return name is not None, reason


def level() -> str | None:
    """The instruction-set level in use; None without compiled kernels."""
    return _choice()[0]


def why() -> str:
    """One sentence on what multiplies and why."""
    return _choice()[1]


@cache
def _choice() -> tuple[str | None, str]:
    wanted = os.environ.get("BITWRIGHT_ISA", "")
    if wanted == "none":
        return None, "torch: BITWRIGHT_ISA=none switches compiled kernels off"
    try:
        from bitwright import _core
    except ImportError as error:
        return None, f"torch: no compiled kernels in this installation ({error})"
    usable: list[str] = _core.cpu_info()["levels"]
    if wanted and wanted not in usable:
        raise BadInput(f"BITWRIGHT_ISA={wanted} is not usable here: choose one of {', '.join(usable)} or none.")
    failures: list[str] = []
    for name in [wanted] if wanted else usable:
        _core.set_isa(name)
        failure = self_test()
        if failure is None:
            notes = [f"{n}: {r}" for n, r in _core.cpu_info()["refused"].items()] + failures
            return name, f"{name} kernels" + (f" ({'; '.join(notes)})" if notes else "")
        failures.append(failure)
    return None, f"torch: {'; '.join(failures)}"


def self_test() -> str | None:
    """Compares the level in use with the reference; None, or what differs."""
    from bitwright import _core

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(35, COLUMNS, generator=generator)
    wide = torch.randn(3, WIDE, generator=generator)
    if not torch.equal(rotated_inputs(wide), plainly_mixed(wide, factors(WIDE), None)):
        return f"{_core.isa()} gives wrong results for rotations"
    for name, terms in _samples(generator):
        matrix = _core.Matrix(terms, ROWS, COLUMNS)
        expected = matrix.reference(x)
        for tokens in (1, 3, 35):
            if (matrix.matmul(x[:tokens], 2) != expected[:tokens]).any():
                return f"{_core.isa()} gives wrong results for {name} with {tokens} tokens"
    return None


def _samples(generator: torch.Generator) -> Iterator[tuple[str, tuple[Term, ...]]]:
    for width in range(1, 9):
        yield f"{width}-bit codes", (_dense(width, generator),)
    for per_word in (12, 16, 20, 24, 28, 32, 40, 48, 56, 64):
        yield f"words of {per_word} weights", (_words(per_word, generator),)
    base = _dense("base3", generator)
    yield "a codebook", (replace(_dense(4, generator), table=_bytes(1, generator)[0, 0, :16].contiguous()),)
    yield "base-3 codes", (base,)
    yield "rotated inputs", (replace(base, rotated=True), replace(_bitmap(4, generator), rotated=True))
    yield "input scales", (_dense(1, generator), _scaled(generator), _scaled(generator))
    yield "picked columns", (base, _picked(generator))
    for bits in (4, 8):
        yield f"{bits}-bit values in a bitmap", (base, _bitmap(bits, generator))
    for block in (64, 128):
        yield f"values in blocks of {block}", (base, _blocks(block, generator))


def _scales(groups: int, generator: torch.Generator) -> Tensor:
    return torch.randn(-(-ROWS // 16), groups, 16, generator=generator).half()


def _bytes(vectors: int, generator: torch.Generator, end: int = 256) -> Tensor:
    return torch.randint(0, end, (-(-ROWS // 16), vectors, 64), generator=generator, dtype=torch.uint8)


def _dense(width: int | str, generator: torch.Generator) -> Dense:
    groups = -(-COLUMNS // GROUP)
    if isinstance(width, str):
        codes = _bytes(-(-COLUMNS // 20), generator, 243)
    else:
        codes = _bytes(-(-COLUMNS // 32) * width, generator)
    mins = _scales(groups, generator) if width == 2 else None
    return Dense(codes, width, _scales(groups, generator), mins, -1.5, GROUP, GROUP)


def _scaled(generator: torch.Generator) -> Dense:
    return replace(_dense(1, generator), inputs=torch.randn(COLUMNS, generator=generator).half())


def _picked(generator: torch.Generator) -> Dense:
    """Every third column, each group's in one block."""
    groups = -(-COLUMNS // GROUP)
    assert GROUP <= 96
    picked = torch.arange(0, COLUMNS, 3, dtype=torch.int32)
    scales, mins = _scales(1, generator), _scales(1, generator)
    return Dense(_bytes(4 * groups, generator), 4, scales, mins, 0.0, None, GROUP, picked=picked)


def _words(per_word: int, generator: torch.Generator) -> Dense:
    words = -(-COLUMNS // per_word)
    codes = _bytes(2 * words, generator).view(-1, words, 128)
    half = torch.randint(1, 256, (64,), generator=generator)
    table = torch.cat([half, 256 - half]).to(torch.uint8)
    scales = _scales(-(-COLUMNS // GROUP), generator)
    return Dense(codes, "trellis", scales, None, -128.0, GROUP, GROUP, table=table, per_word=per_word)


def _bitmap(bits: int, generator: torch.Generator) -> Sparse:
    blocks = -(-COLUMNS // 32)
    index = _bytes(blocks, generator) & _bytes(blocks, generator)
    counts = ((index.flatten(1).unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)) & 1).sum((1, 2))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    values = _bytes(int(starts[-1]) * bits // 512 + 1, generator)[0].flatten()
    scales = _scales(1, generator)
    return Sparse("bitmap", index, values, bits, scales, scales.neg(), starts, None, 0, GROUP)


def _blocks(block: int, generator: torch.Generator) -> Sparse:
    count = -(-COLUMNS // block)
    # Slots of a row take different quarters of the block, so none is named twice; some are unused.
    index = _bytes(count, generator, block // 4) + torch.arange(4, dtype=torch.uint8).repeat(16) * (block // 4)
    index[_bytes(count, generator) < 64] = 255
    scales = _scales(1, generator)
    return Sparse("nm", index, _bytes(count, generator), 8, scales, scales.neg(), None, None, block, GROUP)
