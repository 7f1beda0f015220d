"""Field planes follow their address formula, for every width and odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats import _layout


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, "base3"])
@given(rows=st.integers(1, 49), columns=st.sampled_from([1, 20, 32, 33, 64, 96, 100, 576]), seed=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_round_trip(width: int | str, rows: int, columns: int, seed: int) -> None:
    top = 3 if width == "base3" else 1 << int(width)
    codes = torch.randint(0, top, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = _layout.pack_codes(codes, width)
    assert packed.shape == (_layout.tiles(rows), _layout.vectors(columns, width), 64)
    assert torch.equal(_layout.unpack_codes(packed, width, (rows, columns)), codes)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize(("row", "column"), [(0, 0), (15, 31), (16, 32), (33, 63), (5, 77)])
def test_address_of_a_single_code(width: int, row: int, column: int) -> None:
    """address = 64 (b (k div 32) + s + (k mod 32) div C) + 4 r + p, field f, for each plane of the stack."""
    codes = torch.zeros(34, 80, dtype=torch.uint8)
    codes[row, column] = (1 << width) - 1
    packed = _layout.pack_codes(codes, width)
    expected = torch.zeros_like(packed)
    shift = 0
    for w in _layout.WIDTHS[width]:
        per_vector = 4 * (8 // w)
        vector = column // 32 * width + shift + column % 32 // per_vector
        field, byte = column % per_vector // 4, column % 4
        expected[row // 16, vector, 4 * (row % 16) + byte] |= ((1 << w) - 1) << (w * field)
        shift += w
    assert torch.equal(packed, expected)


def test_every_base3_byte() -> None:
    digits = torch.cartesian_prod(*[torch.arange(3)] * 5).to(torch.uint8)  # 243 rows of five digits
    codes = torch.zeros(243, 20, dtype=torch.uint8)
    codes[:, 0::4] = digits
    packed = _layout.pack_codes(codes, "base3")
    assert torch.equal(_layout.unpack_codes(packed, "base3", (243, 20)), codes)
    assert int(packed.max()) == 242


def test_lanes_round_trip_and_take_rows() -> None:
    values = torch.randn(21, 5).half().float()
    plane = _layout.pack_lanes(values)
    assert torch.equal(_layout.unpack_lanes(plane, 21), values)
    ids = torch.tensor([20, 0, 7])
    assert torch.equal(_layout.unpack_lanes(_layout.take_rows(plane, ids), 3), values[ids])
