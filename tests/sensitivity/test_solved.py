"""Losses of solved options on a sample of rows."""

from __future__ import annotations

import pytest
import torch

from bitwright.calibrate.observe import Gram, hessian
from bitwright.formats.integer import Integer
from bitwright.sensitivity.observe import Observed
from bitwright.sensitivity.solved import losses, sample
from bitwright.solvers.gptq import Gptq


def seen(rows: int, columns: int, seed: int = 0) -> Observed:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(400, columns, generator=draw) @ torch.randn(columns, columns, generator=draw)
    g = torch.randn(400, rows, generator=draw) * torch.rand(rows, generator=draw) ** 4
    square = g.square().sum(1, keepdim=True)
    return Observed(Gram.of(x), (x * square).T @ x, g.square().sum(0))


def test_few_rows_are_all_solved() -> None:
    w, own = torch.randn(40, 64), seen(40, 64)
    found = losses({"a": w}, {"a": own}, hessian([own.gram], "a"), [Integer(3, 32)], Gptq())["a"][0]
    h = hessian([own.gram], "a")
    change = Gptq().solve(w, Integer(3, 32), h).dequantize() - w
    assert found.weight == pytest.approx(float(change.square().sum()), rel=1e-5)
    assert found.output == pytest.approx(h.error(change), rel=1e-4)
    share = own.gradient / own.gradient.sum()
    assert found.divergence == pytest.approx(
        0.5 * float((share * ((change @ own.guided) * change).sum(1)).sum()) / 400, rel=1e-4
    )


def test_a_sample_stands_for_all_rows() -> None:
    w = torch.randn(700, 32) * torch.rand(700, 1)
    own = seen(700, 32)
    taken = sample(w, own.gradient)
    assert len(taken.rows) == 64
    assert float(taken.weights.sum()) == pytest.approx(700, rel=0.2)
    values = own.gradient * w.square().sum(1)
    assert float((values[taken.rows] * taken.weights).sum()) == pytest.approx(float(values.sum()), rel=0.2)
    guess = losses({"a": w}, {"a": own}, hessian([own.gram], "a"), [Integer(3, 32)], Gptq())["a"][0]
    h = hessian([own.gram], "a")
    change = Gptq().solve(w, Integer(3, 32), h).dequantize() - w
    assert guess.output == pytest.approx(h.error(change), rel=0.25)


def test_linears_with_one_input_are_solved_together_and_more_bits_lose_less() -> None:
    a, b = seen(20, 64), seen(30, 64, 1)
    b.gram = a.gram
    weights = {"a": torch.randn(20, 64), "b": torch.randn(30, 64)}
    both = losses(weights, {"a": a, "b": b}, hessian([a.gram], "a"), [Integer(2, 32), Integer(4, 32)], Gptq())
    alone = losses({"b": weights["b"]}, {"b": b}, hessian([a.gram], "a"), [Integer(2, 32)], Gptq())
    assert both["b"][0].output == pytest.approx(alone["b"][0].output, rel=1e-4)
    assert both["a"][1].divergence < both["a"][0].divergence
