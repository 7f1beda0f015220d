"""Codecs of salient places: round trips with empty, full and far-apart rows, and exact sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import Refused
from bitwright.formats._masks import Bitmap, Nm, Offsets
from bitwright.partitions.slots import Slots
from bitwright.protocols import ColumnStats


def masks(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Rows without, with few and with many salient entries."""
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(rows, 1, generator=g) ** 3
    share[0] = 0
    return torch.rand(rows, columns, generator=g) < share


@pytest.mark.parametrize("codec", [Bitmap(), Offsets()], ids=["bitmap", "offsets"])
@pytest.mark.parametrize("bits", [8, 4])
@given(rows=st.integers(1, 40), columns=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_round_trip(codec: Bitmap | Offsets, bits: int, rows: int, columns: int, seed: int) -> None:
    mask = masks(rows, columns, seed)
    mask[:, 255::256] = False  # offsets count to 255 of a tile's 256
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed)) * mask
    planes = codec.pack(mask, codes, bits)
    found_mask, found = codec.unpack(planes, (rows, columns), bits)
    assert torch.equal(found_mask, mask)
    assert torch.equal(found, codes.to(torch.uint8))
    specs = codec.planes((rows, columns), int(mask.sum()), bits)
    assert {k: tuple(v.shape) for k, v in planes.items()} == {k: s.shape for k, s in specs.items()}


@pytest.mark.parametrize("columns", [1, 3, 64, 65, 128, 200])
@pytest.mark.parametrize("block", [64, 128])
def test_slots_round_trip(block: int, columns: int) -> None:
    w = torch.randn(19, columns, generator=torch.Generator().manual_seed(0))
    by = Slots(block, "magnitude")
    mask = by.split(w, ColumnStats.flat(columns))
    assert int(mask.sum()) == by.count((19, columns))
    codes = torch.randint(0, 256, w.shape, generator=torch.Generator().manual_seed(1)) * mask
    found_mask, found = Nm(block).unpack(Nm(block).pack(mask, codes, 8), (19, columns), 8)
    assert torch.equal(found_mask, mask)
    assert torch.equal(found, codes.to(torch.uint8))


def test_a_full_tile_needs_a_bitmap() -> None:
    mask = torch.ones(3, 256, dtype=torch.bool)
    with pytest.raises(Refused, match="store a bitmap"):
        Offsets().pack(mask, mask.int(), 8)
    assert torch.equal(Bitmap().unpack(Bitmap().pack(mask, mask.int(), 8), (3, 256), 8)[0], mask)


def test_bitmap_addresses() -> None:
    """Bit 4 r + p of field f in 32-column block v belongs to row r, column 32 v + 4 f + p of the tile."""
    for row, column in [(0, 0), (15, 31), (16, 5), (7, 34), (3, 18)]:
        mask = torch.zeros(20, 40, dtype=torch.bool)
        mask[row, column] = True
        plane = Bitmap().pack(mask, mask.int(), 8)["mask"]
        byte = plane[row // 16, column // 32, 4 * (row % 16) + column % 4]
        assert int(byte) == 1 << (column % 32 // 4)
        assert int((plane != 0).sum()) == 1
