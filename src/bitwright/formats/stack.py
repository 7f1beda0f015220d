"""A stack of residual blocks: sign planes times magnitudes of low rank. Its first blocks alone are a weight too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.formats._affine import ACTIVATION_GROUP
from bitwright.formats._planes import named
from bitwright.groups import Params
from bitwright.protocols import ColumnStats, Dense, Operand, Planes, PlaneSpec, Term

MOST = 8  # blocks: every code of a weight is tried
TERMS = 16  # of one matrix in a kernel: one for each vector of each block
SPARE, ROUNDS = 4, 12  # of subspace iteration: directions beside those wanted, and products with A^T A


@dataclass(frozen=True)
class Stack:
    """weight = sum over blocks of (+1 or -1) * sum over `rank` vectors of row scale * column scale.

    BitStack (arXiv 2410.23918). Its scaling of input channels by activation norms is the weight of the squared errors
    under which the magnitudes are fitted, so column scales hold it and no other layer changes. One block of rank 1 is
    OneBit's SVID; a kernel adds one term for each vector of each block, and the terms of a block share its signs.
    """

    kind: ClassVar[str] = "stack"
    group: ClassVar[int | None] = None
    blocks: int = 6
    rank: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= MOST:
            raise BadField(self, "blocks", self.blocks, f"give 1 to {MOST} blocks")
        if not 1 <= self.rank * self.blocks <= TERMS or self.rank < 1:
            raise BadField(self, "rank", self.rank, f"give at least 1, and at most {TERMS} vectors in all blocks")

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    def prefix(self, count: int) -> Stack:
        """The format of the first `count` blocks."""
        return replace(self, blocks=count)

    def decode_prefix(self, codes: Tensor, params: Params, count: int) -> Tensor:
        """The sum of the first `count` blocks."""
        return self.prefix(count).decode(codes, params)

    def roles(self, index: int) -> dict[str, str]:
        """Planes of one block by the names they would have alone."""
        return {role: named(role, index) for role in ("weight", "scales", "columns")}

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Nothing is decided for the whole matrix."""
        return {}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Block after block: signs, and the magnitudes of least weighted squared error for them (iterative AVD)."""
        rest = w.float().contiguous()  # equal bits whatever the caller's strides
        norms = importance.float().mean(0).sqrt()
        found: Params = {}
        for block in range(self.blocks):
            scales, columns = _magnitudes(rest, norms, self.rank)
            for i in range(self.rank):
                found[named("scale", block * self.rank + i)] = scales[:, i : i + 1]
                found[named("column", block * self.rank + i)] = columns[i : i + 1]
            size = self._size(found, block)
            rest = rest - torch.where(rest * size < 0, -size, size)
        return found

    @property
    def continuous(self) -> tuple[str, ...]:
        """Scales of rows and of columns."""
        return tuple(named(role, i) for i in range(self.blocks * self.rank) for role in ("scale", "column"))

    def stored(self, params: Params) -> Params:
        """All of them in f16."""
        return {name: _fit.straight_half(value) for name, value in params.items()}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest codes, int32: bit i is the sign of block i."""
        sizes = [self._size(params, block) for block in range(self.blocks)]
        if self.blocks == 1:  # what solvers ask for, column by column
            return (w * sizes[0] > 0).to(torch.int32)
        least = torch.full(w.shape, torch.inf, dtype=torch.promote_types(w.dtype, torch.float32))
        codes = torch.zeros(w.shape, dtype=torch.int32)

        def visit(block: int, value: Tensor, code: int) -> None:
            nonlocal least
            if block == self.blocks:
                distance = (value - w).abs()
                codes.masked_fill_(distance < least, code)
                least = torch.minimum(distance, least)
                return
            visit(block + 1, value - sizes[block], code)
            visit(block + 1, value + sizes[block], code | 1 << block)

        visit(1, -sizes[0], 0)
        visit(1, sizes[0], 1)
        return codes

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The sum of the blocks in float32."""
        signs = ((((codes >> block) & 1) * 2 - 1).float() for block in range(self.blocks))
        return reduce(torch.add, (sign * self._size(params, block) for block, sign in enumerate(signs)))

    def _size(self, params: Params, block: int) -> Tensor:
        """Magnitudes of one block, [R, C]; scales are the distance of the two signs."""
        own = range(block * self.rank, (block + 1) * self.rank)
        return reduce(torch.add, (params[named("scale", i)] / 2 * params[named("column", i)] for i in own))

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """Of each block: signs, f16 row scales [rank, tiles, 16], f16 column scales [rank, C]."""
        planes: Planes = {}
        for block in range(self.blocks):
            own = range(block * self.rank, (block + 1) * self.rank)
            lanes = [_layout.pack_lanes(params[named("scale", i)]).squeeze(1) for i in own]
            planes[named("weight", block)] = _layout.pack_codes((codes >> block) & 1, 1)
            planes[named("scales", block)] = torch.stack(lanes)
            planes[named("columns", block)] = torch.cat([params[named("column", i)].half() for i in own])
        return planes

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        codes = torch.zeros(shape, dtype=torch.int32)
        params: Params = {}
        for block in range(self.blocks):
            codes |= _layout.unpack_codes(planes[named("weight", block)], 1, shape).int() << block
            for i in range(self.rank):
                scale = planes[named("scales", block)][i].reshape(-1, 1)[: shape[0]]
                params[named("scale", block * self.rank + i)] = scale.float()
                column = planes[named("columns", block)][i : i + 1]
                params[named("column", block * self.rank + i)] = column.float()
        return codes, params

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Those of every block, numbered from the second on."""
        rows, columns = shape
        tiles = _layout.tiles(rows)
        own = {
            "weight": PlaneSpec(torch.uint8, (tiles, _layout.vectors(columns, 1), _layout.VECTOR)),
            "scales": PlaneSpec(torch.float16, (self.rank, tiles, _layout.ROWS)),
            "columns": PlaneSpec(torch.float16, (self.rank, columns)),
        }
        return {named(role, block): spec for block in range(self.blocks) for role, spec in own.items()}

    def bits(self, shape: tuple[int, int]) -> Bits:
        """One bit a block, f16 scales of rows and columns for each vector of each block."""
        rows, columns = shape
        codes, scales = self.blocks * rows * columns, 16 * self.blocks * self.rank * (rows + columns)
        stored = 8 * sum(spec.bytes for spec in self.planes(shape).values())
        return Bits(codes=codes, scales=scales, padding=stored - codes - scales)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite."""
        scales = [planes[named(role, block)] for block in range(self.blocks) for role in ("scales", "columns")]
        return None if all(bool(v.isfinite().all()) for v in scales) else "holds a scale that is not finite"

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """A dense term for each vector of each block."""
        return tuple(
            Dense(
                codes=planes[named("weight", block)],
                width=1,
                scales=planes[named("scales", block)][i].unsqueeze(1),
                mins=None,
                offset=-0.5,
                group=None,
                activation_group=ACTIVATION_GROUP,
                inputs=planes[named("columns", block)][i],
            )
            for block in range(self.blocks)
            for i in range(self.rank)
        )

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        found = []
        for block in range(self.blocks):
            codes = _layout.unpack_codes(planes[named("weight", block)], 1, shape)
            for i in range(self.rank):
                scale = planes[named("scales", block)][i].reshape(-1, 1)[: shape[0]].float()
                column = planes[named("columns", block)][i]
                found.append(Operand(codes, None, scale, -scale / 2, None, column))
        return tuple(found)

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows, without touching the others."""
        taken = dict(planes)
        for block in range(self.blocks):
            signs, scales = named("weight", block), named("scales", block)
            taken[signs] = _layout.take_rows(planes[signs], ids)
            lanes = planes[scales].flatten(1)[:, ids]
            padding = -len(ids) % _layout.ROWS
            taken[scales] = torch.nn.functional.pad(lanes, (0, padding)).view(self.rank, -1, _layout.ROWS)
        return self.decode(*self.unpack(taken, (len(ids), shape[1])))


def _magnitudes(w: Tensor, norms: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Row scales [R, rank] (twice the magnitude) and column scales [rank, C] with the least sum of squares of
    (|w| - scales / 2 @ columns) * norms: the first singular triples of |w| * norms. Values are those that f16 holds."""
    size = w.abs() * norms
    most = size.max()
    if not bool(most > 0):
        return torch.zeros(len(w), rank), torch.ones(rank, w.shape[1])
    left, values, right = _leading(size / most, rank)
    columns = torch.where(norms > 0, right / norms, 0.0)
    level = columns.square().mean(1, keepdim=True).sqrt()
    level = torch.where(level > 0, level, 1.0)
    scales = 2 * left * (values * level[:, 0]) * most
    return _fit.half(scales), _fit.half(columns / level)


def _leading(a: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` singular triples of [R, C] by subspace iteration: [R, count], [count], [count, C]."""
    width = min(count + SPARE, *a.shape)
    start = torch.randn(a.shape[1], width, generator=torch.Generator().manual_seed(0))
    start[:, 0] = 1.0  # magnitudes: the first direction is close to their mean
    basis = torch.linalg.qr(start)[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(a.t() @ (a @ basis))[0]
    left, values, turn = torch.linalg.svd(a @ basis, full_matrices=False)
    right = turn @ basis.t()
    missing = max(count - width, 0)
    pad = torch.nn.functional.pad
    return (
        pad(left[:, :count], (0, missing)),
        pad(values[:count], (0, missing)),
        pad(right[:count], (0, 0, 0, missing)),
    )


EXAMPLES = (Stack(1), Stack(3), Stack(2, rank=3))
