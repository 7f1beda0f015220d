"""Nested integers: the most significant bits of a code are a code too, of a coarser grid with the same scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.formats._affine import AffineCodes, check_group
from bitwright.formats._planes import named
from bitwright.groups import Params
from bitwright.protocols import Dense, Operand, Planes, PlaneSpec

FINEST = 8


@dataclass(frozen=True)
class Nested(AffineCodes):
    """Codes of `finest` bits on an even grid with a level at zero, of which the first blocks of bits are stored.

    `blocks_of_bits` says how many bits each block has, most significant first: (2, 1, 1, 2, 2) can be read at 2, 3, 4,
    6 and 8 bits. Read at l bits, code u of the finest grid becomes u >> (finest - l) and stands for the centre of its
    cell, which is the nearest of the coarser grid; scales of all widths are the stored one times a power of two.
    Double Rounding (arXiv 2502.01199) adds half a cell before the shift instead, and needs a bit of the next block for
    it; the errors are the same (its coarse grids have a level at zero, these do not).
    `search` narrowed ranges are tried; the best has the least sum of root mean square errors at all widths.
    """

    kind: ClassVar[str] = "nested"
    blocks_of_bits: tuple[int, ...] = (2, 1, 1, 2, 2)
    group: int | None = 64
    finest: int = FINEST
    search: int = 20

    def __post_init__(self) -> None:
        if not self.blocks_of_bits or not all(1 <= bits <= 4 for bits in self.blocks_of_bits):
            raise BadField(self, "blocks_of_bits", self.blocks_of_bits, "give one block or more of 1 to 4 bits")
        if not self.bits_per_code <= self.finest <= FINEST:
            raise BadField(self, "finest", self.finest, f"give {self.bits_per_code} to {FINEST} bits")
        if not 0 <= self.search <= 100:
            raise BadField(self, "search", self.search, "give 0 to 100 candidates")
        check_group(self, self.group, _layout.BLOCK)

    @property
    def bits_per_code(self) -> int:
        """Those that are stored."""
        return sum(self.blocks_of_bits)

    @property
    def blocks(self) -> int:
        """How many widths it can be read at."""
        return len(self.blocks_of_bits)

    @property
    def levels(self) -> int:
        """2^bits."""
        return 1 << self.bits_per_code

    @property
    def offset(self) -> float:
        """Centres of cells; of the finest grid the codes themselves."""
        return 0.5 - self.levels / 2 - 0.5 / self._cell

    @property
    def _cell(self) -> int:
        """Codes of the finest grid that one code here stands for."""
        return 1 << self.finest - self.bits_per_code

    def prefix(self, count: int) -> Nested:
        """The format of the first `count` blocks."""
        return replace(self, blocks_of_bits=self.blocks_of_bits[:count])

    def decode_prefix(self, codes: Tensor, params: Params, count: int) -> Tensor:
        """What the first `count` blocks of codes stand for."""
        coarse = self.prefix(count)
        scale = params["scale"] * (coarse._cell // self._cell)
        shift = self.bits_per_code - coarse.bits_per_code
        return coarse.decode(codes >> shift, {"scale": scale, "min": scale * coarse.offset})

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """The range with the least sum over widths of the roots of weighted squared errors."""
        widest, _ = _fit.minmax(w, importance, 1 << self.finest, -(1 << self.finest) / 2)
        best = self._parameters(widest)
        least = self._error(w, importance, best)
        for step in range(1, self.search + 1):
            trial = self._parameters(widest * (1 - 0.8 * step / (self.search + 1)))
            error = self._error(w, importance, trial)
            best = {k: torch.where(error < least, trial[k], best[k]) for k in best}
            least = torch.minimum(error, least)
        return best

    def _parameters(self, finest: Tensor) -> Params:
        return self.stored({"scale": finest * self._cell})

    def _error(self, w: Tensor, importance: Tensor, params: Params) -> Tensor:
        codes = self.encode(w, params)
        apart = (w - self.decode_prefix(codes, params, count) for count in range(1, self.blocks + 1))
        errors = torch.cat([(importance * d.square()).sum(1, keepdim=True) for d in apart], dim=1)
        return errors.sqrt().sum(1, keepdim=True)

    def stored(self, params: Params) -> Params:
        """The scale of the finest grid in f16, such that the largest one made of it fits too."""
        scale = params["scale"] / self._cell
        most = _fit.LARGEST / (1 << self.finest - self.blocks_of_bits[0])
        kept = _fit.half(scale.detach()).clamp(-most, most) + (scale - scale.detach())
        return params | {"scale": kept * self._cell, "min": kept * self._cell * self.offset}

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """Codes [R, C] and scales [R, G] -> one field plane a block, scales of the finest grid."""
        planes: Planes = {}
        for block, (bits, shift) in enumerate(self._fields()):
            planes[named("weight", block)] = _layout.pack_codes((codes >> shift) & ((1 << bits) - 1), bits)
            if block == 0:
                planes["scales"] = _layout.pack_lanes(params["scale"] / self._cell)
        return planes

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        codes = torch.zeros(shape, dtype=torch.int32)
        for block, (bits, shift) in enumerate(self._fields()):
            codes |= _layout.unpack_codes(planes[named("weight", block)], bits, shape).int() << shift
        return codes, self.parameters(planes, shape)

    def parameters(self, planes: Planes, shape: tuple[int, int]) -> Params:
        """Scales and mins [R, G] of stored planes."""
        scale = _layout.unpack_lanes(planes["scales"], shape[0]) * self._cell
        return {"scale": scale, "min": scale * self.offset}

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Codes uint8 [tiles, vectors, 64] of each block, scales f16 [tiles, G, 16] behind the first."""
        whole = super().planes(shape)
        tiles, found = _layout.tiles(shape[0]), {}
        for block, bits in enumerate(self.blocks_of_bits):
            vectors = _layout.vectors(shape[1], bits)
            found[named("weight", block)] = PlaneSpec(torch.uint8, (tiles, vectors, _layout.VECTOR))
            if block == 0:
                found["scales"] = whole["scales"]
        return found

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite, those of the coarsest grid too."""
        coarsest = planes["scales"] * (1 << self.finest - self.blocks_of_bits[0])
        return None if _layout.finite(coarsest) else "holds a scale that is not finite"

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Dense, ...]:
        """A dense term for each block, whose scales are made from the stored ones; the first bears the offset."""
        return tuple(
            Dense(
                codes=planes[named("weight", block)],
                width=bits,
                scales=planes["scales"] * (self._cell << shift),
                mins=None,
                offset=0.0 if block else self.offset / (1 << shift),
                group=self.group,
                activation_group=self.group if self.group and self.group <= 160 else self._activation_group(),
            )
            for block, (bits, shift) in enumerate(self._fields())
        )

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        found = []
        for term in self.terms(planes, shape):
            codes = _layout.unpack_codes(term.codes, term.width, shape)
            scale = _layout.unpack_lanes(term.scales, shape[0])
            found.append(Operand(codes, None, scale, scale * term.offset, self.group))
        return tuple(found)

    def _fields(self) -> list[tuple[int, int]]:
        """Bits of each block, and how far left of the last it stands in the code."""
        left, found = self.bits_per_code, []
        for bits in self.blocks_of_bits:
            left -= bits
            found.append((bits, left))
        return found


EXAMPLES = (Nested(), Nested((2, 1, 1), 128), Nested((4, 2), None, finest=6), Nested((3,), 64, finest=3))
