"""Terms built straight from the address formula, in numpy, independent of the package's own packing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bitwright.protocols import Dense, Sparse, Term

WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


@dataclass(frozen=True)
class Operand:
    """A term next to what it stands for: codes and selected places [R, C], scale and min of each column [R, C]."""

    term: Term
    codes: np.ndarray
    selected: np.ndarray
    scale: np.ndarray
    min: np.ndarray


def rotated(x: np.ndarray) -> np.ndarray:
    """Activations float32 [T, C] by the words of docs/format.md: signs, then sums in blocks and of blocks."""
    columns = x.shape[1]
    block = min(columns & -columns, 512)
    size = 2.0 ** -((block.bit_length() - 1) // 2)
    y = x.copy()
    for k in range(columns):
        h = k + 1
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        y[:, k] *= np.float32(size if (h ^ h >> 16) % 2 else -size)
    half = 1
    while half < block:
        for first in range(0, columns, 2 * half):
            a, b = y[:, first : first + half].copy(), y[:, first + half : first + 2 * half].copy()
            y[:, first : first + half], y[:, first + half : first + 2 * half] = a + b, a - b
        half *= 2
    n = columns // block
    if not 1 < n <= 64:
        return y
    angles = 2 * np.pi * (np.outer(np.arange(n), np.arange(n)) % n) / n
    matrix = ((np.cos(angles) + np.sin(angles)) / np.sqrt(n)).astype(np.float32)
    apart = y.reshape(-1, n, block)
    mixed = matrix[:, 0, None] * apart[:, None, 0]
    for k in range(1, n):
        mixed = mixed + matrix[:, k, None] * apart[:, None, k]
    return mixed.reshape(y.shape)


def tiles(rows: int) -> int:
    return -(-rows // 16)


def field_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Byte and bit of every code by the formula; the reference for `formats/_layout.py`."""
    rows, columns = codes.shape
    blocks = -(-columns // 32)
    plane = np.zeros((tiles(rows), blocks * bits, 64), np.uint8)
    n, k = np.indices(codes.shape)
    shift = 0
    for width in WIDTHS[bits]:
        per_vector = 4 * (8 // width)
        vector = k // 32 * bits + shift + k % 32 // per_vector
        j = k % 32 % per_vector
        piece = (codes >> shift & ((1 << width) - 1)) << width * (j // 4)
        np.add.at(plane, (n // 16, vector, 4 * (n % 16) + j % 4), piece.astype(np.uint8))
        shift += width
    return plane


def base3_plane(codes: np.ndarray) -> np.ndarray:
    rows, columns = codes.shape
    plane = np.zeros((tiles(rows), -(-columns // 20), 64), np.uint8)
    n, k = np.indices(codes.shape)
    np.add.at(plane, (n // 16, k // 20, 4 * (n % 16) + k % 4), (codes * 3 ** (k % 20 // 4)).astype(np.uint8))
    return plane


def lanes(values: np.ndarray) -> torch.Tensor:
    """[R, G] -> f16 [tiles, G, 16]."""
    padded = np.zeros((tiles(len(values)) * 16, values.shape[1]), np.float16)
    padded[: len(values)] = values
    return torch.from_numpy(padded.reshape(-1, 16, values.shape[1]).transpose(0, 2, 1).copy())


def nibbles(values: np.ndarray) -> np.ndarray:
    padded = np.append(values, np.zeros(len(values) % 2, values.dtype)).astype(np.uint8)
    return padded[0::2] | padded[1::2] << 4


def dense(
    rng: np.random.Generator,
    codes: np.ndarray,
    width: int | str,
    group: int | None,
    activation_group: int,
    offset: float | None = None,
) -> Operand:
    rows, columns = codes.shape
    span = columns if group is None else group
    groups = -(-columns // span)
    scale = rng.standard_normal((rows, groups)).astype(np.float16)
    minimum = rng.standard_normal((rows, groups)).astype(np.float16) if offset is None else None
    plane = base3_plane(codes) if isinstance(width, str) else field_planes(codes, width)
    mins = None if minimum is None else lanes(minimum)
    term = Dense(torch.from_numpy(plane), width, lanes(scale), mins, offset or 0.0, group, activation_group)
    at = np.arange(columns) // span
    wide = scale.astype(np.float32)[:, at]
    low = wide * np.float32(offset) if minimum is None else minimum.astype(np.float32)[:, at]
    return Operand(term, codes, np.ones_like(codes), wide, low)


def trellis(
    rng: np.random.Generator, shape: tuple[int, int], per_word: int, group: int | None, activation_group: int
) -> Operand:
    """Random words; seven bits from bit floor(64 i / per_word) on, around the word, look up the code of column i."""
    rows, columns = shape
    plane = rng.integers(0, 256, (tiles(rows), -(-columns // per_word), 128)).astype(np.uint8)
    table = rng.integers(1, 256, 64).astype(np.uint8)
    table = np.concatenate([table, np.uint8(0) - table])
    words = plane.reshape(tiles(rows), -1, 16, 8).view("<u8")[..., 0]
    n, k = np.indices(shape)
    word = words[n // 16, k // per_word, n % 16]
    start = (k % per_word * 64 // per_word).astype(np.uint64)
    codes = table[(word >> start | word << (np.uint64(64) - start) % np.uint64(64)) & np.uint64(127)].astype(np.int64)
    scale = rng.standard_normal((rows, 1 if group is None else -(-columns // group))).astype(np.float16)
    term = Dense(
        torch.from_numpy(plane),
        "trellis",
        lanes(scale),
        None,
        -128.0,
        group,
        activation_group,
        table=torch.from_numpy(table),
        per_word=per_word,
    )
    wide = scale.astype(np.float32)[:, np.arange(columns) // (columns if group is None else group)]
    return Operand(term, codes, np.ones_like(codes), wide, wide * np.float32(-128))


def _row_wide(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    pair = rng.standard_normal((2, shape[0], 1)).astype(np.float16)
    return pair[0], pair[1]


def _spread(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(values.astype(np.float32), shape)


def bitmap(rng: np.random.Generator, mask: np.ndarray, bits: int, activation_group: int) -> Operand:
    rows, columns = mask.shape
    codes = np.where(mask, rng.integers(0, 1 << bits, mask.shape), 0)
    padded = np.zeros((2, tiles(rows) * 16, -(-columns // 32) * 32), np.int64)
    padded[0, :rows, :columns], padded[1, :rows, :columns] = mask, codes
    # (tile, quad, lane, column of the quad)
    chosen, values = padded.reshape(2, tiles(rows), 16, -1, 4).transpose(0, 1, 3, 2, 4)
    stream = values[chosen > 0].astype(np.uint8)
    starts = np.append(0, chosen.sum((1, 2, 3)).cumsum()).astype(np.int32)
    scale, low = _row_wide(rng, mask.shape)
    term = Sparse(
        "bitmap",
        torch.from_numpy(field_planes(mask.astype(np.int64), 1)),
        torch.from_numpy(stream if bits == 8 else nibbles(stream)),
        bits,
        lanes(scale),
        lanes(low),
        torch.from_numpy(starts),
        None,
        0,
        activation_group,
    )
    return Operand(term, codes, mask, _spread(scale, mask.shape), _spread(low, mask.shape))


def columns(rng: np.random.Generator, chosen: np.ndarray, shape: tuple[int, int], bits: int, group: int) -> Operand:
    """Codes of the columns where `chosen` bool [C] only; those of every activation group begin a block of 32."""
    codes = np.where(chosen, rng.integers(0, 1 << bits, shape), 0)
    beside = []
    for start in range(0, shape[1], group):
        own = codes[:, start : start + group][:, chosen[start : start + group]]
        beside += [own, np.zeros((shape[0], -own.shape[1] % 32), np.int64)]
    scale, low = _row_wide(rng, shape)
    plane, picked = field_planes(np.concatenate(beside, 1), bits), np.flatnonzero(chosen).astype(np.int32)
    term = Dense(
        torch.from_numpy(plane), bits, lanes(scale), lanes(low), 0.0, None, group, picked=torch.from_numpy(picked)
    )
    return Operand(term, codes, np.broadcast_to(chosen, shape), _spread(scale, shape), _spread(low, shape))


def offsets(rng: np.random.Generator, mask: np.ndarray, bits: int, activation_group: int) -> Operand:
    rows, columns = mask.shape
    codes = np.where(mask, rng.integers(0, 1 << bits, mask.shape), 0)
    wide = -(-columns // 256)
    padded = np.zeros((rows, wide * 256), bool)
    padded[:, :columns] = mask
    counts = padded.reshape(rows, wide, 256).sum(2).astype(np.uint8)
    index = (np.nonzero(mask)[1] % 256).astype(np.uint8)
    stream = codes[mask].astype(np.uint8)
    scale, low = _row_wide(rng, mask.shape)
    term = Sparse(
        "offsets",
        torch.from_numpy(index),
        torch.from_numpy(stream if bits == 8 else nibbles(stream)),
        bits,
        lanes(scale),
        lanes(low),
        None,
        torch.from_numpy(counts),
        0,
        activation_group,
    )
    return Operand(term, codes, mask, _spread(scale, mask.shape), _spread(low, mask.shape))


def blocks(rng: np.random.Generator, shape: tuple[int, int], block: int, activation_group: int) -> Operand:
    rows, columns = shape
    count = -(-columns // block)
    index = np.full((tiles(rows), count, 64), 255, np.uint8)
    values = rng.integers(0, 256, index.shape).astype(np.uint8)
    codes, selected = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for n in range(rows):
        for b in range(count):
            here = min(block, columns - b * block)
            used = rng.permutation(here)[: rng.integers(0, min(4, here) + 1)]
            for slot, column in zip(rng.permutation(4), used, strict=False):
                at = n // 16, b, 4 * (n % 16) + slot
                index[at] = column
                codes[n, b * block + column], selected[n, b * block + column] = values[at], True
    scale, low = _row_wide(rng, shape)
    term = Sparse(
        "nm",
        torch.from_numpy(index),
        torch.from_numpy(values),
        8,
        lanes(scale),
        lanes(low),
        None,
        None,
        block,
        activation_group,
    )
    return Operand(term, codes, selected, _spread(scale, shape), _spread(low, shape))


def product(x: np.ndarray, operands: list[Operand], bias: np.ndarray | None, activation_group: int) -> np.ndarray:
    """What the definition says, one float32 operation after the other."""
    columns = x.shape[1]
    f = np.zeros((len(x), len(operands[0].codes)), np.float32)
    for o in operands:
        for start in range(0, columns, activation_group):
            run = slice(start, min(start + activation_group, columns))
            top = np.abs(x[:, run]).max(1, keepdims=True)
            scale = top / np.float32(127)
            inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
            q = np.clip(np.rint(x[:, run] * inverse), -127, 127).astype(np.int64)
            a = q @ (o.codes[:, run] * o.selected[:, run]).T
            total = q @ o.selected[:, run].T.astype(np.int64)
            t = o.scale[:, start] * a.astype(np.float32) + o.min[:, start] * total.astype(np.float32)
            f = f + scale * t
    return f if bias is None else f + bias
