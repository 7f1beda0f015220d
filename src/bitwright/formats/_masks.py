"""How the places of salient entries are stored, and their codes in the same order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import Refused
from bitwright.formats import _layout
from bitwright.partitions.slots import SLOTS
from bitwright.protocols import Planes, PlaneSpec

OFFSET_TILE = 256
EMPTY = 255  # index of an unused slot

Shape = tuple[int, int]


def pack_values(codes: Tensor, bits: int) -> Tensor:
    """A stream of 8-bit or 4-bit codes as bytes, the first of two in the low nibble."""
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    even = torch.zeros(-(-len(codes) // 2) * 2, dtype=torch.uint8)
    even[: len(codes)] = codes
    return even[0::2] | (even[1::2] << 4)


def unpack_values(plane: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack_values`."""
    if bits == 8:
        return plane
    return torch.stack((plane & 15, plane >> 4), dim=1).view(-1)[:count]


class Bitmap:
    """One bit an entry in a field plane; codes in kernel order: tile, column quad, row lane, column of the quad."""

    @staticmethod
    def _order(x: Tensor) -> Tensor:
        rows, columns = x.shape
        blocks = -(-columns // _layout.BLOCK)
        padded = x.new_zeros(_layout.tiles(rows) * _layout.ROWS, blocks * _layout.BLOCK)
        padded[:rows, :columns] = x
        return padded.view(-1, _layout.ROWS, blocks * 8, 4).transpose(1, 2).reshape(-1)

    def pack(self, mask: Tensor, codes: Tensor, bits: int) -> Planes:
        """Planes of a mask and the codes under it."""
        ordered = self._order(mask)
        counts = ordered.view(_layout.tiles(mask.shape[0]), -1).sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
        return {
            "mask": _layout.pack_codes(mask.to(torch.uint8), 1),
            "starts": starts,
            "salient": pack_values(self._order(codes)[ordered], bits),
        }

    def unpack(self, planes: Planes, shape: Shape, bits: int) -> tuple[Tensor, Tensor]:
        """Mask and codes, 0 outside the mask."""
        mask = _layout.unpack_codes(planes["mask"], 1, shape).bool()
        ordered = self._order(mask)
        flat = torch.zeros(ordered.numel(), dtype=torch.uint8)
        flat[ordered] = unpack_values(planes["salient"], bits, int(ordered.sum()))
        blocks = -(-shape[1] // _layout.BLOCK)
        codes = flat.view(-1, blocks * 8, _layout.ROWS, 4).transpose(1, 2).reshape(-1, blocks * _layout.BLOCK)
        return mask, codes[: shape[0], : shape[1]]

    def planes(self, shape: Shape, count: int, bits: int) -> dict[str, PlaneSpec]:
        """Shapes of the planes."""
        tiles = _layout.tiles(shape[0])
        return {
            "mask": PlaneSpec(torch.uint8, (tiles, _layout.vectors(shape[1], 1), _layout.VECTOR)),
            "starts": PlaneSpec(torch.int32, (tiles + 1,)),
            "salient": PlaneSpec(torch.uint8, (-(-count * bits // 8),)),
        }

    def mask_bits(self, shape: Shape, count: int) -> tuple[int, int]:
        """Bits of places and of tables."""
        return shape[0] * shape[1], (_layout.tiles(shape[0]) + 1) * 32

    def flaw(self, planes: Planes, shape: Shape, count: int) -> str | None:
        """Starts must be the running count of the mask's bits; no bit lies in the padding."""
        mask = planes["mask"]
        held = torch.from_numpy(np.bitwise_count(mask.numpy())).view(mask.shape[0], -1).sum(1)
        starts = planes["starts"].long()
        if int(starts[0]) != 0 or not torch.equal(starts.diff(), held) or int(starts[-1]) != count:
            return "counts its salient entries wrongly"
        padded = (_layout.tiles(shape[0]) * _layout.ROWS, mask.shape[1] * _layout.BLOCK)
        edge = _layout.unpack_codes(mask[-1:], 1, (_layout.ROWS, padded[1]))[shape[0] % _layout.ROWS or _layout.ROWS :]
        last = _layout.unpack_codes(mask[:, -1:], 1, (padded[0], _layout.BLOCK))
        last = last[:, shape[1] % _layout.BLOCK or _layout.BLOCK :]
        return "marks a salient entry outside the matrix" if bool(edge.any() or last.any()) else None


class WholeColumns:
    """One bit a column; codes in the order of `Bitmap`."""

    def pack(self, mask: Tensor, codes: Tensor, bits: int) -> Planes:
        """Planes of a mask and the codes under it."""
        return {"chosen": _layout.pack_flags(mask[0]), "salient": Bitmap().pack(mask, codes, bits)["salient"]}

    def columns(self, planes: Planes, shape: Shape) -> Tensor:
        """Those that are salient, int64 [n]."""
        return _layout.unpack_flags(planes["chosen"])[: shape[1]].nonzero().flatten()

    def unpack(self, planes: Planes, shape: Shape, bits: int) -> tuple[Tensor, Tensor]:
        """Mask and codes, 0 outside the mask."""
        mask = _layout.unpack_flags(planes["chosen"])[: shape[1]].expand(shape)
        return Bitmap().unpack(Bitmap().pack(mask, mask, 8) | {"salient": planes["salient"]}, shape, bits)

    def planes(self, shape: Shape, count: int, bits: int) -> dict[str, PlaneSpec]:
        """Shapes of the planes."""
        return {
            "chosen": PlaneSpec(torch.uint8, (-(-shape[1] // 8),)),
            "salient": PlaneSpec(torch.uint8, (-(-count * bits // 8),)),
        }

    def mask_bits(self, shape: Shape, count: int) -> tuple[int, int]:
        """Bits of places and of tables."""
        return shape[1], 0

    def flaw(self, planes: Planes, shape: Shape, count: int) -> str | None:
        """As many columns as there are codes, none behind the last."""
        bits = _layout.unpack_flags(planes["chosen"])
        if bool(bits[shape[1] :].any()):
            return "marks a salient entry outside the matrix"
        return None if int(bits.sum()) * shape[0] == count else "counts its salient entries wrongly"


class Offsets:
    """8-bit column offsets in tiles of 256 columns and an 8-bit count a row and tile; row-major order."""

    def pack(self, mask: Tensor, codes: Tensor, bits: int) -> Planes:
        """Planes of a mask and the codes under it."""
        columns = mask.shape[1]
        parts = [mask[:, a : a + OFFSET_TILE].sum(1) for a in range(0, columns, OFFSET_TILE)]
        counts = torch.stack(parts, dim=1)
        if int(counts.max()) > 255:
            row = int(counts.max(1).values.argmax())
            raise Refused(f"all 256 entries of a tile in row {row} are salient, offsets count to 255: store a bitmap.")
        rows, cols = mask.nonzero(as_tuple=True)
        return {
            "offsets": (cols % OFFSET_TILE).to(torch.uint8),
            "counts": counts.to(torch.uint8),
            "salient": pack_values(codes[rows, cols], bits),
        }

    def unpack(self, planes: Planes, shape: Shape, bits: int) -> tuple[Tensor, Tensor]:
        """Mask and codes, 0 outside the mask."""
        counts = planes["counts"].long()
        cell = torch.arange(counts.numel()).repeat_interleave(counts.view(-1))
        column = cell % counts.shape[1] * OFFSET_TILE + planes["offsets"].long()
        row = cell // counts.shape[1]
        mask = torch.zeros(shape, dtype=torch.bool)
        codes = torch.zeros(shape, dtype=torch.uint8)
        mask[row, column] = True
        codes[row, column] = unpack_values(planes["salient"], bits, len(row))
        return mask, codes

    def planes(self, shape: Shape, count: int, bits: int) -> dict[str, PlaneSpec]:
        """Shapes of the planes."""
        return {
            "offsets": PlaneSpec(torch.uint8, (count,)),
            "counts": PlaneSpec(torch.uint8, (shape[0], -(-shape[1] // OFFSET_TILE))),
            "salient": PlaneSpec(torch.uint8, (-(-count * bits // 8),)),
        }

    def mask_bits(self, shape: Shape, count: int) -> tuple[int, int]:
        """Bits of places and of tables."""
        return count * 8 + shape[0] * -(-shape[1] // OFFSET_TILE) * 8, 0

    def flaw(self, planes: Planes, shape: Shape, count: int) -> str | None:
        """Counts must add up to the offsets, which ascend inside a tile and stay inside the matrix."""
        counts = planes["counts"].long().view(-1)
        if int(counts.sum()) != count:
            return "counts its salient entries wrongly"
        cell = torch.arange(len(counts)).repeat_interleave(counts)
        offsets = planes["offsets"].long()
        if bool(((cell.diff() == 0) & (offsets.diff() <= 0)).any()):
            return "lists salient entries out of order"
        columns = cell % planes["counts"].shape[1] * OFFSET_TILE + offsets
        return "marks a salient entry outside the matrix" if bool((columns >= shape[1]).any()) else None


class Nm:
    """Four slots a row and block of columns: a byte of index and a byte of code each; unused slots have index 255."""

    def __init__(self, block: int) -> None:
        self.block = block

    def _blocks(self, columns: int) -> int:
        return -(-columns // self.block)

    def pack(self, mask: Tensor, codes: Tensor, bits: int) -> Planes:
        """Planes of a mask and the codes under it."""
        rows, columns = mask.shape
        blocks = self._blocks(columns)
        row, column = mask.nonzero(as_tuple=True)
        cell = row * blocks + column // self.block
        first = torch.searchsorted(cell, torch.arange(rows * blocks))
        slot = torch.arange(len(cell)) - first[cell]
        index = torch.full((rows * blocks, SLOTS), EMPTY, dtype=torch.uint8)
        value = torch.zeros(rows * blocks, SLOTS, dtype=torch.uint8)
        index[cell, slot] = (column % self.block).to(torch.uint8)
        value[cell, slot] = codes[row, column].to(torch.uint8)
        return {"index": self._tile(index, rows, EMPTY), "salient": self._tile(value, rows, 0)}

    def _tile(self, x: Tensor, rows: int, fill: int) -> Tensor:
        tiles = _layout.tiles(rows)
        padded = torch.full((tiles * _layout.ROWS, x.numel() // (rows * SLOTS), SLOTS), fill, dtype=torch.uint8)
        padded[:rows] = x.view(rows, -1, SLOTS)
        return padded.view(tiles, _layout.ROWS, -1, SLOTS).transpose(1, 2).reshape(tiles, -1, _layout.VECTOR)

    def unpack(self, planes: Planes, shape: Shape, bits: int) -> tuple[Tensor, Tensor]:
        """Mask and codes, 0 outside the mask."""
        rows, columns = shape
        blocks = self._blocks(columns)

        def lanes(plane: Tensor) -> Tensor:
            return plane.view(-1, blocks, _layout.ROWS, SLOTS).transpose(1, 2).reshape(-1, blocks, SLOTS)[:rows]

        index = lanes(planes["index"]).long()
        row, block, slot = (index < self.block).nonzero(as_tuple=True)
        column = block * self.block + index[row, block, slot]
        mask = torch.zeros(shape, dtype=torch.bool)
        codes = torch.zeros(shape, dtype=torch.uint8)
        mask[row, column] = True
        codes[row, column] = lanes(planes["salient"])[row, block, slot]
        return mask, codes

    def planes(self, shape: Shape, count: int, bits: int) -> dict[str, PlaneSpec]:
        """Shapes of the planes."""
        spec = PlaneSpec(torch.uint8, (_layout.tiles(shape[0]), self._blocks(shape[1]), _layout.VECTOR))
        return {"index": spec, "salient": spec}

    def mask_bits(self, shape: Shape, count: int) -> tuple[int, int]:
        """Bits of places and of tables."""
        return count * 8, 0

    def flaw(self, planes: Planes, shape: Shape, count: int) -> str | None:
        """An index is below the block, inside the matrix, not repeated in its cell, or marks an unused slot."""
        index = planes["index"].long().view(_layout.tiles(shape[0]), -1, _layout.ROWS, SLOTS)
        used = index != EMPTY
        if int(used.sum()) != count or bool(used.transpose(1, 2).reshape(-1, index.shape[1], SLOTS)[shape[0] :].any()):
            return "counts its salient entries wrongly"
        column = index + torch.arange(index.shape[1])[:, None, None] * self.block
        if bool((used & ((index >= self.block) | (column >= shape[1]))).any()):
            return "marks a salient entry outside the matrix"
        ordered = index.sort(dim=-1).values
        repeated = (ordered.diff(dim=-1) == 0) & (ordered[..., 1:] != EMPTY)
        return "lists a salient entry twice" if bool(repeated.any()) else None


Codec = Bitmap | WholeColumns | Offsets | Nm
