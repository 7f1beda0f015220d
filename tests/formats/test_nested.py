"""Nested integers: what the specification of Double Rounding asks beyond the contracts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.integer import Integer
from bitwright.formats.nested import Nested
from bitwright.groups import per_column
from bitwright.protocols import Additive, Elastic, QTensor
from bitwright.solvers.rtn import Rtn

SHAPE = (48, 96)
WHOLE = Nested()


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def prefix(q: QTensor, count: int) -> QTensor:
    fmt = WHOLE.prefix(count)
    return QTensor(fmt, q.shape, {role: q.planes[role] for role in fmt.planes(q.shape)})


def test_every_prefix_rounds_the_finest_code_to_the_nearest_of_its_grid(weights: torch.Tensor) -> None:
    """At every width: high bits of all 256 codes, decoded no farther away than any other level."""
    codes = torch.arange(256, dtype=torch.int32)[None]
    one = {"scale": torch.ones(1, 1), "min": torch.full((1, 1), WHOLE.offset)}
    finest = WHOLE.decode(codes, one)
    assert torch.equal(finest, torch.arange(-128.0, 128.0)[None])  # zero is a level
    for count, bits in enumerate((2, 3, 4, 6, 8), 1):
        coarse = WHOLE.decode_prefix(codes, one, count)
        levels = coarse.unique()
        assert len(levels) == 2**bits
        nearest = (finest[..., None] - levels).abs().amin(-1)
        assert torch.equal((finest - coarse).abs(), nearest)


def test_prefixes_of_the_planes_are_models_of_their_own(weights: torch.Tensor) -> None:
    q = Rtn().solve(weights, WHOLE, None)
    codes, params = WHOLE.unpack(q.planes, SHAPE)
    spread = per_column(params, WHOLE.group, 96)
    errors = []
    for count in range(1, 6):
        part = prefix(q, count)
        assert torch.equal(part.dequantize(), WHOLE.decode_prefix(codes, spread, count))
        own, there = WHOLE.prefix(count).unpack(part.planes, SHAPE)
        assert torch.equal(
            own, codes >> 8 - WHOLE.prefix(count).bits_per_code
        )  # from the finest, whatever lies between
        again = WHOLE.prefix(count).pack(own, there)
        assert all(torch.equal(again[role], plane) for role, plane in part.planes.items())
        errors.append(float((part.dequantize() - weights).square().mean()))
    assert all(after < before / 2 for before, after in pairwise(errors))
    assert isinstance(WHOLE, Elastic)
    assert not isinstance(WHOLE, Additive)


def test_another_width_costs_nothing() -> None:
    """The same bits, whatever widths they can be read at; one file instead of one a width."""
    assert WHOLE.bits(SHAPE) == Nested((4, 4)).bits(SHAPE) == Integer(8, 64, "symmetric").bits(SHAPE)
    stored = [WHOLE.prefix(count).bits(SHAPE).total for count in range(1, 6)]
    codes = [48 * 96 * bits for bits in (2, 3, 4, 6, 8)]
    assert [b - a for a, b in pairwise(stored)] == [b - a for a, b in pairwise(codes)]


def test_ranges_serve_all_widths(weights: torch.Tensor) -> None:
    """A range searched for all widths gives up a little of what 8 bits have to spare for what 2 bits lack."""
    w = weights**3  # with tails that a range for 8 bits would cover
    covering, searched = (Rtn().solve(w, Nested(search=search), None) for search in (0, 20))

    def errors(q: QTensor) -> torch.Tensor:
        return torch.stack([(prefix(q, count).dequantize() - w).square().mean().sqrt() for count in range(1, 6)])

    before, after = errors(covering), errors(searched)
    assert float(after.sum()) < 0.98 * float(before.sum())
    assert float(after[0]) < 0.95 * float(before[0])
    assert float(after[-1]) > float(before[-1])


def test_formats_that_cannot_be() -> None:
    for fields in ({"blocks_of_bits": ()}, {"blocks_of_bits": (5,)}, {"blocks_of_bits": (4, 4, 1)}, {"finest": 9}):
        with pytest.raises(BadField):
            Nested(**fields)
