"""Row-lane field planes: the one layout of codes and scales, on disk and in memory.

Sixteen rows make a tile. A vector is 64 bytes: byte 4 r + p belongs to row lane r and holds 8 / w fields of w bits;
field f of it is column 4 f + p of the vector. A code of b bits is a stack of planes of widths 4, 2 and 1 (8 stands
alone), low plane first, interleaved per 32 columns, so that a tile takes b vectors per 32 columns.
A base-3 byte holds five ternary digits, column 4 f + p in digit f: 20 columns a vector.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

ROWS = 16
VECTOR = 64
BLOCK = 32
BASE3_COLUMNS = 20
WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def tiles(rows: int) -> int:
    """Tiles of 16 rows."""
    return -(-rows // ROWS)


def vectors(columns: int, width: int | str) -> int:
    """Vectors of 64 bytes that one tile of codes takes."""
    if width == "base3":
        return -(-columns // BASE3_COLUMNS)
    assert isinstance(width, int)
    return -(-columns // BLOCK) * width


def pack_picked(codes: Tensor, width: int, picked: Tensor, group: int) -> Tensor:
    """Codes [R, n] of the columns `picked` int64 [n], as `pack_codes`; those of each `group` columns begin a block."""
    within = picked // group
    counts = torch.bincount(within)
    blocks = (counts + BLOCK - 1) // BLOCK
    first = (blocks.cumsum(0) - blocks) * BLOCK - (counts.cumsum(0) - counts)  # of a group's codes, less those before
    places = torch.arange(len(picked)) + first[within]
    spread = codes.new_zeros(len(codes), int(blocks.sum()) * BLOCK)
    spread[:, places] = codes
    return pack_codes(spread, width)


def pack_codes(codes: Tensor, width: int | str) -> Tensor:
    """Codes [R, C] -> uint8 [tiles, vectors, 64]; rows and columns are padded with code 0."""
    rows, columns = codes.shape
    span = BASE3_COLUMNS if width == "base3" else BLOCK
    blocks = -(-columns // span)
    padded = torch.zeros(tiles(rows) * ROWS, blocks * span, dtype=torch.uint8)
    padded[:rows, :columns] = codes
    lanes = padded.view(tiles(rows), ROWS, blocks, span)
    if width == "base3":
        digits = lanes.view(tiles(rows), ROWS, blocks, 5, 4)
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)
        packed = (digits * powers[:, None]).sum(3, dtype=torch.uint8)
        return packed.permute(0, 2, 1, 3).reshape(tiles(rows), blocks, VECTOR).contiguous()
    assert isinstance(width, int)
    planes, shift = [], 0
    for w in WIDTHS[width]:
        fields = 8 // w
        values = (lanes >> shift) & ((1 << w) - 1)
        values = values.view(tiles(rows), ROWS, blocks, w, fields, 4)
        shifts = torch.arange(fields, dtype=torch.uint8) * w
        packed = (values << shifts[:, None]).sum(4, dtype=torch.uint8)
        planes.append(packed.permute(0, 2, 3, 1, 4).reshape(tiles(rows), blocks, w, VECTOR))
        shift += w
    return torch.cat(planes, dim=2).view(tiles(rows), blocks * width, VECTOR)


def unpack_codes(plane: Tensor, width: int | str, shape: tuple[int, int]) -> Tensor:
    """Inverse of `pack_codes`: uint8 [R, C]."""
    rows, columns = shape
    count = plane.shape[0]
    if width == "base3":
        packed = plane.view(count, -1, ROWS, 4).permute(0, 2, 1, 3).unsqueeze(3)
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)
        codes = (packed // powers[:, None]) % 3
        return codes.reshape(count * ROWS, -1)[:rows, :columns].contiguous()
    assert isinstance(width, int)
    stacked = plane.view(count, -1, width, ROWS, 4)
    codes = torch.zeros(count, ROWS, stacked.shape[1], BLOCK, dtype=torch.uint8)
    shift = 0
    for w in WIDTHS[width]:
        fields = 8 // w
        packed = stacked[:, :, shift : shift + w].permute(0, 3, 1, 2, 4).unsqueeze(4)
        shifts = torch.arange(fields, dtype=torch.uint8) * w
        values = (packed >> shifts[:, None]) & ((1 << w) - 1)
        codes |= values.reshape(codes.shape) << shift
        shift += w
    return codes.view(count * ROWS, -1)[:rows, :columns].contiguous()


def pack_lanes(values: Tensor) -> Tensor:
    """One value a row and group [R, G] -> f16 [tiles, G, 16]; padding rows are 0."""
    rows, count = values.shape
    padded = torch.zeros(tiles(rows) * ROWS, count, dtype=torch.float16)
    padded[:rows] = values.half()
    return padded.view(tiles(rows), ROWS, count).transpose(1, 2).contiguous()


def unpack_lanes(plane: Tensor, rows: int) -> Tensor:
    """Inverse of `pack_lanes`: float32 [R, G]."""
    return plane.transpose(1, 2).reshape(-1, plane.shape[1])[:rows].float()


def pack_flags(flags: Tensor) -> Tensor:
    """Bool [n] -> uint8 [ceil(n / 8)], the first in the lowest bit."""
    padded = torch.zeros(-(-len(flags) // 8) * 8, dtype=torch.uint8)
    padded[: len(flags)] = flags
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_flags(plane: Tensor) -> Tensor:
    """Bool [8 bytes]: inverse of `pack_flags`, with the flags behind the last."""
    return ((plane[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).view(-1).bool()


def finite(plane: Tensor) -> bool:
    """Whether no value of an f16 plane is infinite or NaN: a sum keeps those, and others cannot overflow."""
    return isfinite(float(plane.sum(dtype=torch.float32)))


def take_rows(plane: Tensor, rows: Tensor) -> Tensor:
    """The planes [ceil(n / 16), V, ...] of n chosen rows, for a plane whose last axis is the 16 lanes of a tile."""
    lane_bytes = plane.shape[2] // ROWS
    lanes = plane.view(plane.shape[0], plane.shape[1], ROWS, lane_bytes)
    taken = lanes[rows // ROWS, :, rows % ROWS]  # [n, V, lane_bytes]
    padded = taken.new_zeros(tiles(len(rows)) * ROWS, *taken.shape[1:])
    padded[: len(rows)] = taken
    return padded.view(-1, ROWS, *taken.shape[1:]).transpose(1, 2).reshape(-1, plane.shape[1], plane.shape[2])
