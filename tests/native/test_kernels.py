"""Every level gives the bits that the definition gives, for every kind of term, shape, token count and thread count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.native import packing
from tests.native.packing import Operand

from bitwright import _core
from bitwright.protocols import Sparse

SHAPES = [
    (1, 20, 32, 32),
    (15, 33, 32, 64),
    (48, 576, 128, 128),
    (17, 577, 64, None),
    (40, 320, 80, 160),
    (33, 96, 20, 20),
    (36, 1300, 64, 64),  # three stretches of columns
    (18, 1000, 644, None),  # sums that float32 cannot hold
]
TRELLIS = ("trellis12", "trellis16", "trellis20", "trellis24", "trellis28", "trellis40", "trellis64")
SPARSE = (
    "binary+bitmap8",
    "base3+bitmap4",
    "planes+offsets",
    "base3+64",
    "binary+128",
    "trellis64+64",
    "trellis20+bitmap8",
    "binary+columns4",
    "columns8+planes",
)
KINDS = [*range(1, 9), "base3", *TRELLIS, *SPARSE]
TOKENS = (1, 2, 3, 5, 17, 33, 70)


def operands(kind: int | str, shape: tuple[int, int], activation_group: int, group: int | None) -> list[Operand]:
    rng = np.random.default_rng([shape[0], shape[1], KINDS.index(kind)])

    def codes(width: int | str) -> np.ndarray:
        return rng.integers(0, 1 << width if isinstance(width, int) else 3, shape)

    def dense(width: int | str, offset: float | None = None) -> Operand:
        return packing.dense(rng, codes(width), width, group, activation_group, offset)

    mask = rng.random(shape) < 0.2
    if kind in TRELLIS:
        return [packing.trellis(rng, shape, int(str(kind)[7:]), group, activation_group)]
    match kind:
        case int() | "base3":
            return [dense(kind, -1.5 if kind in (1, 3, "base3") else None)]
        case "binary+bitmap8":
            return [dense(1, -0.5), packing.bitmap(rng, mask, 8, activation_group)]
        case "base3+bitmap4":
            return [dense("base3"), packing.bitmap(rng, mask, 4, activation_group)]
        case "planes+offsets":
            return [dense(2), dense(1, 0.0), packing.offsets(rng, mask, 4 if shape[0] % 2 else 8, activation_group)]
        case "trellis64+64":
            return [
                packing.trellis(rng, shape, 64, group, activation_group),
                packing.blocks(rng, shape, 64, activation_group),
            ]
        case "trellis20+bitmap8":
            return [
                packing.trellis(rng, shape, 20, group, activation_group),
                packing.bitmap(rng, mask, 8, activation_group),
            ]
        case "binary+columns4":
            chosen = rng.random(shape[1]) < 0.2
            chosen[:activation_group], chosen[-1] = False, True  # none in the first of several groups
            return [dense(1, -0.5), packing.columns(rng, chosen, shape, 4, activation_group)]
        case "columns8+planes":
            chosen = np.arange(shape[1]) % 3 == 1
            return [packing.columns(rng, chosen, shape, 8, activation_group), dense(2), dense(1)]
        case "base3+64":
            return [dense("base3", -1.0), packing.blocks(rng, shape, 64, activation_group)]
    return [dense(1), packing.blocks(rng, shape, 128, activation_group)]


def activations(tokens: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(tokens)
    x = np.ldexp(rng.standard_normal((tokens, columns)), rng.integers(-20, 20, (tokens, 1))).astype(np.float32)
    x[0, : columns // 3] = 0
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_bits_equal_the_definition(isa: str, kind: int | str) -> None:
    for rows, columns, activation_group, group in SHAPES:
        parts = operands(kind, (rows, columns), activation_group, group)
        bias = np.random.default_rng(3).standard_normal(rows).astype(np.float32)
        matrix = _core.Matrix([p.term for p in parts], rows, columns, bias)
        x = activations(max(TOKENS), columns)
        expected = packing.product(x, parts, bias, activation_group)
        np.testing.assert_array_equal(matrix.reference(x), expected)
        for tokens in TOKENS:
            np.testing.assert_array_equal(matrix.matmul(x[:tokens], 1 + tokens % 3), expected[:tokens])


@pytest.mark.parametrize("kind", [1, 3, 8, "base3+bitmap4", "binary+128"])
def test_many_tokens_equal_one_at_a_time(isa: str, kind: int | str) -> None:
    parts = operands(kind, (50, 160), 80, 80)
    matrix = _core.Matrix([p.term for p in parts], 50, 160)
    x = activations(33, 160)
    single = np.concatenate([matrix.matmul(x[t : t + 1]) for t in range(33)])
    for tokens in range(1, 34):
        np.testing.assert_array_equal(matrix.matmul(x[:tokens]), single[:tokens])


@pytest.mark.parametrize("columns", [20, 33, 48, 576, 1280, 1536])
def test_rotated_inputs_equal_the_definition(isa: str, columns: int) -> None:
    rng = np.random.default_rng(columns)
    part = packing.dense(rng, rng.integers(0, 4, (40, columns)), 2, None, 64)
    matrix = _core.Matrix([replace(part.term, rotated=True)], 40, columns)
    x = activations(33, columns)
    expected = packing.product(packing.rotated(x), [part], None, 64)
    np.testing.assert_array_equal(matrix.reference(x), expected)
    for tokens in (1, 3, 33):
        np.testing.assert_array_equal(matrix.matmul(x[:tokens], 2), expected[:tokens])


def test_terms_are_rotated_together() -> None:
    part = packing.dense(np.random.default_rng(0), np.zeros((16, 64), np.int64), 1, None, 64)
    with pytest.raises(ValueError, match="rotated"):
        _core.Matrix([part.term, replace(part.term, rotated=True)], 16, 64)


def test_thread_counts_agree_where_there_is_work_for_them(isa: str) -> None:
    rng = np.random.default_rng(0)
    part = packing.dense(rng, rng.integers(0, 16, (1000, 640)), 4, 64, 64)
    matrix = _core.Matrix([part.term], 1000, 640)
    for tokens in (1, 7, 150):
        x = activations(tokens, 640)
        first = matrix.matmul(x, 1)
        for threads in (2, 3, 5):
            np.testing.assert_array_equal(matrix.matmul(x, threads), first)


@pytest.mark.parametrize("width", [*range(1, 9), "base3"])
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_sums_do_not_overflow(isa: str, width: int | str, sign: int) -> None:
    columns = 16384
    top = 2 if isinstance(width, str) else (1 << width) - 1
    part = packing.dense(np.random.default_rng(0), np.full((16, columns), top), width, None, columns, 0.0)
    matrix = _core.Matrix([part.term], 16, columns)
    x = np.full((17, columns), sign, np.float32)
    expected = packing.product(x[:1], [part], None, columns)
    for tokens in (1, 17):
        np.testing.assert_array_equal(matrix.matmul(x[:tokens]), np.repeat(expected, tokens, 0))


def test_every_base3_byte_is_its_five_digits(isa: str) -> None:
    values = np.arange(256).clip(max=242).reshape(4, 64)
    n, k = np.indices((64, 20))
    codes = values[n // 16, n % 16 * 4 + k % 4] // 3 ** (k // 4) % 3
    part = packing.dense(np.random.default_rng(0), codes, "base3", None, 20, 0.0)
    np.testing.assert_array_equal(part.term.codes.numpy().reshape(4, 64), values)
    matrix = _core.Matrix([part.term], 64, 20)
    unit = np.eye(20, dtype=np.float32)
    for x in (unit, unit[:1]):
        np.testing.assert_array_equal(matrix.matmul(x), packing.product(x, [part], None, 20))


def test_one_weight_at_each_address(isa: str) -> None:
    for width in range(1, 9):
        for column in range(0, 64, 3):
            codes = np.zeros((16, 64), np.int64)
            codes[column % 16, column] = (1 << width) - 1
            part = packing.dense(np.random.default_rng(0), codes, width, None, 64, 0.0)
            y = _core.Matrix([part.term], 16, 64).matmul(np.eye(64, dtype=np.float32))
            assert np.argwhere(y).tolist() == [[column, column % 16]]


def test_activations_are_rounded_half_to_even(isa: str) -> None:
    x = np.array([[127.0, 0.5, 1.5, -2.5, 126.5, -127.0, 0.0] + [0.0] * 30 + [3.0]], np.float32)
    codes, scales, sums = _core.quantize(x, 37)
    assert codes[0, :7].tolist() == [127, 0, 2, -2, 126, -127, 0]
    assert (codes[0, 37], scales[0].tolist()) == (127, [1.0, np.float32(3) / np.float32(127)])
    assert sums[0].tolist() == [codes[0, :37].sum(), 127]


def test_unaligned_tensors_are_copied(isa: str) -> None:
    parts = operands("binary+bitmap8", (48, 576), 128, 128)

    def shifted(t: torch.Tensor | None) -> torch.Tensor | None:
        if t is None:
            return None
        room = torch.empty(t.numel() + 1, dtype=t.dtype)
        room[1:] = t.flatten()
        return room[1:].view(t.shape)

    for part in parts:
        for name, value in vars(part.term).items():
            if isinstance(value, torch.Tensor):
                object.__setattr__(part.term, name, shifted(value))
    x = activations(5, 576)
    matrix = _core.Matrix([p.term for p in parts], 48, 576)
    np.testing.assert_array_equal(matrix.matmul(x), packing.product(x, parts, None, 128))


def test_a_bitmap_without_values_adds_nothing(isa: str) -> None:
    rng = np.random.default_rng(0)
    parts = [
        packing.dense(rng, rng.integers(0, 4, (20, 64)), 2, 32, 32),
        packing.bitmap(rng, np.zeros((20, 64), bool), 8, 32),
    ]
    assert isinstance(parts[1].term, Sparse)
    x = activations(3, 64)
    np.testing.assert_array_equal(
        _core.Matrix([p.term for p in parts], 20, 64).matmul(x), _core.Matrix([parts[0].term], 20, 64).matmul(x)
    )
