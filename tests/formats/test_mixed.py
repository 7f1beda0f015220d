"""PB-LLM's format: what its specification asks beyond the contracts."""

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.binary import Binary
from bitwright.formats.mixed import Mixed
from bitwright.linalg import Hessian
from bitwright.partitions.salience import Salience
from bitwright.partitions.slots import Slots
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.rtn import Rtn


def correlated(rows: int = 32, columns: int = 128) -> tuple[torch.Tensor, Hessian]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, columns, generator=g) @ torch.randn(columns, columns, generator=g) / columns**0.5
    x = x * torch.randn(columns, generator=g).exp()  # inputs of very different strength, as in real layers
    w = torch.randn(rows, columns, generator=g) * torch.rand(rows, 1, generator=g).exp()
    w[torch.rand(rows, columns, generator=g) > 0.95] *= 5  # heavy tail
    return w, Hessian(2 / 600 * x.T @ x, 600)


def share_of(share: float, by: str = "hessian", bits: int = 8) -> Mixed:
    return Mixed(Binary(), Salience(share, by), bits)  # type: ignore[arg-type]


def test_error_falls_with_the_share_and_gptq_beats_rounding() -> None:
    w, h = correlated()
    errors = [h.error(Gptq().solve(w, share_of(p), h).dequantize() - w) for p in (0.0, 0.1, 0.3, 0.5, 1.0)]
    assert errors == sorted(errors, reverse=True)
    for p in (0.1, 0.3):
        assert h.error(Rtn().solve(w, share_of(p), h).dequantize() - w) > 1.2 * errors[[0.0, 0.1, 0.3].index(p)]


def test_hessian_salience_beats_magnitude() -> None:
    w, h = correlated()
    errors = {by: h.error(Gptq().solve(w, share_of(0.2, by), h).dequantize() - w) for by in ("hessian", "magnitude")}
    assert errors["hessian"] < errors["magnitude"]


def test_share_zero_is_binary_gptq() -> None:
    w, h = correlated()
    mixed, binary = Gptq().solve(w, share_of(0.0), h), Gptq().solve(w, Binary(), h)
    assert torch.equal(mixed.dequantize(), binary.dequantize())


def test_values_of_a_row() -> None:
    """Two values where binary; at most two displaced 8-bit grids where salient; the mask is the one chosen first."""
    w, h = correlated()
    fmt = share_of(0.3)
    q = Gptq().solve(w, fmt, h)
    mask = fmt.unpack(q.planes, q.shape)[1]["mask"].bool()
    assert int(mask.sum()) == round(0.3 * w.numel())
    for row, salient in zip(q.dequantize(), mask, strict=True):
        assert len(row[~salient].unique()) <= 2
        assert len(row[salient].unique()) <= 512


def test_the_scale_is_the_weighted_optimum() -> None:
    """For fixed signs, a and mean are least squares: moving either by 1 % raises the weighted error."""
    w, _ = correlated()
    importance = torch.rand(1, 128, generator=torch.Generator().manual_seed(3))
    fmt = Binary()
    params = fmt.fit(w, importance, {})
    a, mean = params["scale"] / 2, params["min"] + params["scale"] / 2

    signs = torch.where(w >= mean, 1.0, -1.0)

    def error(a: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return (importance * (w - mean - a * signs) ** 2).sum(1, keepdim=True)

    assert bool((error(a, mean) < error(a * 1.01, mean)).all())
    assert bool((error(a, mean) < error(a * 0.99, mean)).all())


def test_salient_entries_do_not_count_in_the_binary_scale() -> None:
    w = torch.tensor([[1.0, -1.0, 1.0, 100.0] * 8])
    fmt = Mixed(Binary(mean=False), Salience(0.25, "magnitude"))
    assert (Rtn().solve(w, fmt, None).dequantize()[0, :3] - w[0, :3]).abs().max() < 1e-3


def test_four_bits_gain_from_the_second_grid() -> None:
    """The spare low code under a salient entry offers a displaced grid: less error than one grid of that step has."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    fmt = share_of(0.5, "magnitude", 4)
    q = Rtn().solve(w, fmt, None)
    params = fmt.unpack(q.planes, q.shape)[1]
    rest = (q.dequantize() - w)[params["mask"].bool()].square().mean()
    one_grid = params["salient_scale"].square().mean() / 12
    assert rest < 0.7 * one_grid


def test_impossible_fields_are_refused() -> None:
    with pytest.raises(BadField, match="slots go together"):
        Mixed(where="nm")
    with pytest.raises(BadField, match="slots go together"):
        Mixed(by=Slots(), where="bitmap")
    with pytest.raises(BadField, match="give 8, or 4"):
        Mixed(salient_bits=3)
