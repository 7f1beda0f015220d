"""The order that the papers on binarization report, on a layer with correlated inputs and uneven columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitwright.engine.settings import choose
from bitwright.formats.residual import Residual
from bitwright.linalg import Hessian
from bitwright.protocols import Format, Solver
from bitwright.recipes._bits import stored_bits
from bitwright.solvers.descent import Descent
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.rtn import Rtn

SHAPE = (256, 384)


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, Hessian]:
    g = torch.Generator().manual_seed(0)
    rows, columns = SHAPE
    x = torch.randn(1000, columns, generator=g) @ torch.randn(columns, columns, generator=g) / columns**0.5
    x = x * torch.randn(columns, generator=g).exp()
    w = torch.randn(SHAPE, generator=g) * (0.3 * torch.randn(rows, 1, generator=g)).exp()
    w = w * (0.3 * torch.randn(1, columns, generator=g)).exp()
    w[torch.rand(SHAPE, generator=g) > 0.97] *= 3
    return w, Hessian(2 / 1000 * x.T @ x, 1000)


def error(layer: tuple[torch.Tensor, Hessian], fmt: Format, solver: Solver) -> float:
    w, h = layer
    return h.error(solver.solve(w, fmt, h).dequantize() - w) / h.error(w)


def test_the_published_order_at_equal_bits(layer: tuple[torch.Tensor, Hessian]) -> None:
    """ARB-RC <= ARB < BiLLM < PB-LLM, each with at least as many bits as the one before it."""
    column, arb, bi = (
        replace(Residual(2, 128, fitting), columns=columns)
        for fitting, columns in (("alternating", "shared"), ("alternating", "none"), ("split", "none"))
    )
    most = stored_bits(column, [SHAPE])
    pb, _ = choose("pb-llm", {"format.salient_bits": "4"}, most, [SHAPE])
    assert stored_bits(pb.format, [SHAPE]) > most - 0.01
    # The same bits, bought as shorter groups, do not reach what column scales do.
    wider = Residual(2, 96)
    assert stored_bits(wider, [SHAPE]) > most - 0.02
    errors = [error(layer, f, Gptq()) for f in (column, arb, bi, pb.format)]
    assert errors == sorted(errors)
    assert errors[0] < error(layer, wider, Gptq())


def test_error_feedback_and_descent_help_every_fit(layer: tuple[torch.Tensor, Hessian]) -> None:
    for fmt in (Residual(2, 128, "split"), Residual(2, 128, columns="own")):
        errors = [error(layer, fmt, solver) for solver in (Descent(), Gptq(), Rtn())]
        assert errors == sorted(errors)
        assert errors[0] < 0.93 * errors[1]


def test_a_split_by_magnitude_beats_the_published_search_by_saliency(layer: tuple[torch.Tensor, Hessian]) -> None:
    """The published code compares w^2 / u^2 with a break-point; the paper, and this package, compare |w|."""
    w, h = layer
    u = h.factor(0.01).diagonal().float()
    magnitude = Rtn().solve(w, Residual(2, 128, "split"), None).dequantize()
    saliency = torch.zeros_like(w)
    for start in range(0, SHAPE[1], 128):
        part = w[:, start : start + 128]
        s = (part / u[start : start + 128]).square()
        found = []
        for point in torch.quantile(s.flatten(), torch.linspace(0.1, 0.9, 81)):
            large = s >= point
            ways = []
            for group in (large, ~large):
                mean = (part.abs() * group).sum(1, keepdim=True) / group.sum(1, keepdim=True).clamp(min=1)
                ways.append(mean * part.sign() * group)
            found.append(ways[0] + ways[1])
        saliency[:, start : start + 128] = min(found, key=lambda q: float((q - part).square().sum()))
    assert h.error(magnitude - w) < 0.8 * h.error(saliency - w)
    assert (magnitude - w).square().sum() < 0.8 * (saliency - w).square().sum()
