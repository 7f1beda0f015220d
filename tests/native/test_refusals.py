"""Terms and activations that do not fit are refused in a sentence, before anything is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.native import packing

from bitwright import _core
from bitwright.errors import BadInput
from bitwright.protocols import Dense, Sparse, Term
from bitwright.runtime import native

RNG = np.random.default_rng(0)
SHAPE = (40, 200)
DENSE = packing.dense(RNG, RNG.integers(0, 8, SHAPE), 3, 80, 40).term
BITMAP = packing.bitmap(RNG, RNG.random(SHAPE) < 0.1, 8, 40).term
OFFSETS = packing.offsets(RNG, RNG.random(SHAPE) < 0.1, 8, 40).term
BLOCKS = packing.blocks(RNG, SHAPE, 64, 40).term
WORDS = packing.trellis(RNG, SHAPE, 16, None, 128).term
COLUMNS = packing.columns(RNG, RNG.random(SHAPE[1]) < 0.2, SHAPE, 4, 40).term
assert isinstance(DENSE, Dense)
assert isinstance(WORDS, Dense)
assert isinstance(COLUMNS, Dense)
assert COLUMNS.picked is not None
assert WORDS.table is not None
assert isinstance(BITMAP, Sparse)
assert isinstance(OFFSETS, Sparse)
assert isinstance(BLOCKS, Sparse)


@pytest.mark.parametrize(
    ("term", "changes", "message"),
    [
        (DENSE, {"codes": DENSE.codes[:, :-1].contiguous()}, r"codes has shape \[3, 20, 64\], expected \[3, 21, 64\]"),
        (DENSE, {"codes": DENSE.codes.to(torch.int8)}, "codes has the wrong element type"),
        (DENSE, {"codes": DENSE.codes.transpose(0, 1)}, "codes must be a contiguous array"),
        (DENSE, {"scales": DENSE.scales.float()}, "scales has the wrong element type"),
        (DENSE, {"scales": DENSE.scales[:, :2].contiguous()}, "scales has shape"),
        (DENSE, {"mins": DENSE.scales[:1]}, "mins has shape"),
        (DENSE, {"width": 9}, "width must be 1 to 8"),
        (DENSE, {"width": "base4"}, "width must be 1 to 8"),
        (DENSE, {"width": "trellis", "per_word": 18}, "per_word must be 12, 16, 20"),
        (WORDS, {"table": WORDS.table.sort().values}, "must be the first, negated"),
        (COLUMNS, {"picked": COLUMNS.picked + 200}, "picked names a column outside"),
        (COLUMNS, {"picked": COLUMNS.picked - 200}, "picked must name columns in their order"),
        (COLUMNS, {"picked": COLUMNS.picked.flip(0).contiguous()}, "picked must name columns in their order"),
        (COLUMNS, {"picked": COLUMNS.picked[:0]}, "picked names no column"),
        (COLUMNS, {"picked": torch.arange(200, dtype=torch.int32)}, "codes has shape"),
        (COLUMNS, {"picked": COLUMNS.picked.long()}, "picked has the wrong element type"),
        (COLUMNS, {"width": "base3"}, "picked columns need codes of 1 to 8 bits"),
        (DENSE, {"group": 60}, "group must be a multiple of activation_group"),
        (DENSE, {"activation_group": 0}, "activation_group must be 1 to"),
        (BITMAP, {"starts": BITMAP.starts + 1}, "starts must begin with 0"),
        (BITMAP, {"starts": BITMAP.starts * 2}, "starts does not agree"),
        (BITMAP, {"starts": None}, "starts is missing"),
        (BITMAP, {"values": BITMAP.values[:-1]}, "values is shorter"),
        (BITMAP, {"bits": 5}, "4 or 8 bits"),
        (BITMAP, {"where": "list"}, "where must be"),
        (OFFSETS, {"index": OFFSETS.index[:-1]}, "index is shorter"),
        (OFFSETS, {"index": torch.full_like(OFFSETS.index, 255)}, "outside the matrix"),
        (OFFSETS, {"index": torch.zeros_like(OFFSETS.index)}, "names a column twice"),
        (BLOCKS, {"block": 32}, "block must be 64 or 128"),
        (BLOCKS, {"index": BLOCKS.index[:, :3].contiguous()}, "index has shape"),
    ],
)
def test_wrong_terms(term: Term, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        native.native_matrix((replace(term, **changes),), SHAPE, None)


def test_terms_that_disagree_about_activations() -> None:
    with pytest.raises(BadInput, match="one activation_group"):
        native.native_matrix((DENSE, replace(BITMAP, activation_group=80)), SHAPE, None)


@pytest.mark.parametrize("terms", [(), (DENSE,) * 17])
def test_too_few_and_too_many_terms(terms: tuple[Term, ...]) -> None:
    with pytest.raises(BadInput, match="1 to 16 terms"):
        native.native_matrix(terms, SHAPE, None)


def test_wrong_bias() -> None:
    with pytest.raises(BadInput, match="one entry a row"):
        native.native_matrix((DENSE,), SHAPE, torch.zeros(41))


@pytest.mark.parametrize("x", [torch.zeros(3, 199), torch.zeros(200), torch.zeros(3, 200, dtype=torch.float64)])
def test_wrong_activations(x: torch.Tensor) -> None:
    matrix = native.native_matrix((DENSE,), SHAPE, None)
    with pytest.raises(BadInput, match=r"give float32 \[tokens, 200\]"):
        matrix.matmul(x)
    with pytest.raises((ValueError, TypeError)):
        _core.Matrix([DENSE], *SHAPE).matmul(x)


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="usable:"):
        _core.set_isa("avx3")
