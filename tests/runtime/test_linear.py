"""Packed layers: the arithmetic of users, whichever code computes it."""

from __future__ import annotations

import pytest
import torch

from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.protocols import Format
from bitwright.runtime import native
from bitwright.runtime.linear import QEmbedding, QExperts, QLinear, TiedHead
from bitwright.runtime.reference import integer_matmul, quantize_activations
from bitwright.solvers.rtn import Rtn

FORMATS = [Integer(3, 64), Integer(8, None, "symmetric"), Integer(4, 256), Mixed()]


def layer(fmt: Format, rows: int = 50, columns: int = 300, bias: bool = False) -> QLinear:
    made = QLinear(fmt, (rows, columns), bias)
    made.fill(Rtn().solve(torch.randn(rows, columns), fmt, None).planes)
    return made


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_both_paths_give_the_same_bits(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available()[0]:
        pytest.skip(native.available()[1])
    made, x = layer(fmt), torch.randn(2, 7, 300)
    with_kernel = made(x)
    monkeypatch.setattr(native, "available", lambda: (False, "switched off by a test"))
    assert torch.equal(made(x), with_kernel)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_float_activations_multiply_by_the_decoded_weights(fmt: Format) -> None:
    made, x = layer(fmt, bias=True), torch.randn(5, 300)
    made.bias.data.uniform_()  # type: ignore[union-attr]
    made.activations = "float"
    expected = x @ made.qtensor.dequantize().t() + made.bias
    assert torch.allclose(made(x), expected, atol=1e-4)
    made.activations = "int8"
    assert (made(x) - expected).norm() < 0.02 * expected.norm()


def test_quantized_activations() -> None:
    """Half to even, the largest at 127, zero groups at scale 0, ragged tail on its own."""
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 0, 0, 0, 0, 10.0]])
    codes, scales = quantize_activations(x, 4)
    assert codes[0].tolist() == [127, 0, 2, -2, 0, 0, 0, 0, 127]
    assert scales[0].tolist() == [1.0, 0.0, pytest.approx(10 / 127)]


def test_worst_case_sums_are_exact() -> None:
    """All codes and activations at their largest stay below 2^24 in a group."""
    fmt = Integer(8, 128)
    codes = torch.full((16, 128), 255, dtype=torch.int32)
    planes = fmt.pack(codes, {"scale": torch.ones(16, 1), "min": torch.zeros(16, 1)})
    y = integer_matmul(torch.full((1, 128), 127.0), fmt.operands(planes, (16, 128)), 128)
    assert torch.equal(y, torch.full((1, 16), 255.0 * 127 * 128))


def test_embedding_tied_head_and_experts() -> None:
    w = torch.randn(70, 64)
    fmt = Integer(8, 64, "symmetric")
    q = Rtn().solve(w, fmt, None)
    table = QEmbedding(fmt, (70, 64), scale=2.0)
    table.fill(q.planes)
    ids = torch.tensor([[3, 69], [0, 3]])
    assert torch.equal(table(ids), q.dequantize()[ids] * 2.0)
    head = TiedHead(table)
    assert not list(head.state_dict())
    head.activations = "float"
    x = torch.randn(3, 64)
    assert torch.allclose(head(x), x @ q.dequantize().t(), atol=1e-5)
    experts = QExperts(fmt, (2, 70, 64))
    experts.fill({role: torch.stack([plane, plane.flip(0)]) for role, plane in q.planes.items()})
    assert torch.equal(experts[0], q.dequantize())
