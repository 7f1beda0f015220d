"""Sums of one-bit planes: what the specifications of BiLLM, ARB-LLM, DB-LLM and OneBit ask beyond the contracts."""

from itertools import pairwise

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.binary import Binary
from bitwright.formats.residual import Residual
from bitwright.solvers.rtn import Rtn


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def laplace(rows: int, columns: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    size = torch.empty(rows, columns).exponential_(generator=g)
    return size * torch.where(torch.rand(rows, columns, generator=g) < 0.5, -1.0, 1.0)


def error(w: torch.Tensor, fmt: Residual | Binary) -> float:
    rest = Rtn().solve(w, fmt, None).dequantize() - w
    return float(rest.square().sum() / w.square().sum())


@pytest.mark.parametrize(
    ("fitting", "gaussian", "heavy"),
    [("greedy", 0.1305, 0.229), ("split", 0.1175, 0.1762), ("alternating", 0.1175, 0.1762)],
)
def test_errors_of_known_densities(fitting: str, gaussian: float, heavy: float) -> None:
    """Two planes a row on Gaussian and Laplacian weights; two scales reach what Lloyd and Max give for 2 bits."""
    fmt = Residual(2, None, fitting)  # type: ignore[arg-type]
    assert error(normal(8, 8192), fmt) == pytest.approx(gaussian, abs=0.002)
    assert error(laplace(8, 8192), fmt) == pytest.approx(heavy, abs=0.003)


def test_fits_improve_in_order() -> None:
    w = laplace(64, 512)
    errors = [error(w, Residual(2, 128, fitting)) for fitting in ("greedy", "split", "alternating")]  # type: ignore[arg-type]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.98 * errors[1]
    assert error(w, Residual(3, 128)) < errors[2] / 2 < error(w, Residual(1, 128)) / 2


def test_rounds_never_make_a_row_worse() -> None:
    w = laplace(32, 256)
    for fmt in (Residual(2, 128, rounds=0), Residual(3, 128, rounds=0), Residual(2, None, rounds=0, values="bit")):
        errors = []
        for rounds in (0, 1, 3, 15):
            tried = Residual(fmt.order, fmt.group, rounds=rounds, values=fmt.values)
            errors.append((Rtn().solve(w, tried, None).dequantize() - w).square().sum(1))
        for before, after in pairwise(errors):
            assert bool((after <= before * (1 + 1e-5)).all())


def test_one_plane_is_binary() -> None:
    w = normal(16, 256)
    assert error(w, Residual(1, 128, "greedy")) == pytest.approx(error(w, Binary(128, mean=False)), abs=1e-6)


def test_one_plane_with_column_scales_is_the_best_rank_one_fit() -> None:
    """ARB-RC, OneBit's SVID and a BitStack block: what is left is all but the first singular value of |W|."""
    w = normal(48, 96) * normal(48, 1, 1).exp() * normal(1, 96, 2).exp()
    energy = torch.linalg.svdvals(w.abs()).square()
    fmt = Residual(1, None, rounds=50, columns="shared")
    assert error(w, fmt) == pytest.approx(float(energy[1:].sum() / energy.sum()), rel=2e-3)
    signs = torch.where(normal(48, 96, 3) < 0, -1.0, 1.0)
    exact = signs * (normal(48, 1, 4).abs() + 0.1) * (normal(1, 96, 5).abs() + 0.1)
    assert error(exact, fmt) < 1e-6


def test_column_scales_follow_the_columns() -> None:
    w, d = normal(32, 96), torch.linspace(0.5, 2, 96)
    fmt = Residual(1, None, columns="shared")
    plain, stretched = (Rtn().solve(x, fmt, None) for x in (w, w * d))
    assert torch.equal(plain.planes["weight"], stretched.planes["weight"])
    ratio = stretched.planes["columns"].float() / plain.planes["columns"].float() / d
    assert ratio.std() < 1e-2 * ratio.mean()


@pytest.mark.parametrize("columns", ["shared", "own"])
def test_column_scales_help_where_columns_differ(columns: str) -> None:
    w = normal(64, 256) * (0.7 * normal(1, 256, 1)).exp()
    assert error(w, Residual(2, 128, columns=columns)) < 0.75 * error(w, Residual(2, 128))  # type: ignore[arg-type]


def test_planes_of_bits() -> None:
    """DB-LLM: levels 0, a1, a2, a1 + a2; on a Gaussian no less than 0.138; skewed rows choose the mirror."""
    fmt = Residual(2, None, values="bit")
    assert error(normal(8, 8192), fmt) == pytest.approx(0.138, abs=0.003)
    w = laplace(1, 2048).abs() - 0.3
    assert error(w, fmt) == pytest.approx(error(-w, fmt), rel=1e-3)
    decoded = Rtn().solve(normal(4, 256), fmt, None).dequantize()
    assert all(len(row.unique()) == 4 and 0 in row for row in decoded)


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": 0},
        {"order": 5},
        {"rounds": -1},
        {"order": 3, "fitting": "split"},
        {"values": "bit", "mean": True},
        {"fitting": "split", "columns": "own"},
        {"group": 33},
    ],
)
def test_settings_that_do_not_fit(wrong: dict[str, object]) -> None:
    with pytest.raises(BadField):
        Residual(**wrong)  # type: ignore[arg-type]
