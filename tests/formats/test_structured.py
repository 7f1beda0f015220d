"""N:M sparsity around one-bit planes, and whole salient columns."""

from math import comb, log2

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.residual import Residual
from bitwright.formats.structured import Structured
from bitwright.linalg import Hessian
from bitwright.partitions.columns import Columns
from bitwright.partitions.salience import Salience
from bitwright.protocols import ColumnStats
from bitwright.solvers.descent import Descent
from bitwright.solvers.rtn import Rtn


def layer(rows: int = 48, columns: int = 256) -> tuple[torch.Tensor, Hessian]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, columns, generator=g) @ torch.randn(columns, columns, generator=g) / columns**0.5
    x = x * torch.randn(columns, generator=g).exp()
    return torch.randn(rows, columns, generator=g), Hessian(2 / 600 * x.T @ x, 600)


@pytest.mark.parametrize(("keep", "of"), [(4, 8), (5, 8), (6, 8), (1, 8), (2, 4)])
def test_every_run_keeps_exactly_n(keep: int, of: int) -> None:
    w, h = layer()
    fmt = Structured(Residual(2, 128), keep, of)
    decoded = Descent(sweeps=1).solve(w, fmt, h).dequantize()
    assert bool(((decoded != 0).view(48, -1, of).sum(2) == keep).all())
    bits = fmt.bits((48, 256))
    assert bits.masks == 48 * 256 // of * -int(-log2(comb(of, keep)) // 1)
    assert bits.codes == 48 * 256 * keep // of * 2


def test_the_largest_stay_and_the_last_run_may_be_short() -> None:
    w = torch.randn(16, 21, generator=torch.Generator().manual_seed(0))
    q = Rtn().solve(w, Structured(Residual(1, None), 4, 8, "magnitude"), None).dequantize()
    for start in (0, 8):
        part = w[:, start : start + 8].abs()
        assert torch.equal(q[:, start : start + 8] != 0, part >= part.sort(1, descending=True).values[:, 3:4])
    assert bool(((q[:, 16:] != 0).sum(1) == 4).all())
    assert bool((Rtn().solve(w[:, :19], Structured(Residual(1, None), 4, 8), None).dequantize()[:, 16:] != 0).all())


def test_importance_prefers_strong_inputs_and_ignores_the_size_of_a_row() -> None:
    w, h = layer()
    fmt = Structured(Residual(1, None), 4, 8, "importance")
    stats = ColumnStats(h.diagonal, torch.ones(256))
    mask = fmt.prepare(w, stats)["mask"]
    per_column = mask.sum(0)
    strong = h.diagonal > h.diagonal.median()
    assert per_column[strong].mean() > 1.2 * per_column[~strong].mean()
    silent = h.diagonal.clone()
    silent[::8] = 0
    assert float(fmt.prepare(w, ColumnStats(silent, stats.u))["mask"][:, ::8].sum()) == 0


@pytest.mark.parametrize("wrong", [{"keep": 8}, {"keep": 0}, {"of": 6}, {"low": Residual(2, 64, values="bit")}])
def test_settings_that_do_not_fit(wrong: dict[str, object]) -> None:
    with pytest.raises(BadField):
        Structured(**wrong)  # type: ignore[arg-type]


def test_columns_are_the_same_for_all_rows_and_follow_them() -> None:
    w, h = layer()
    stats = ColumnStats(h.diagonal, torch.ones(256))
    by = Columns(0.2)
    mask = by.split(w, stats)
    assert bool((mask == mask[:1]).all())
    assert int(mask.sum()) == by.count((48, 256)) == 48 * round(0.2 * 256)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    moved = by.split(w[:, order], ColumnStats(stats.h[order], stats.u))
    assert torch.equal(moved, mask[:, order])


def test_salient_columns_cost_a_bit_a_column_and_beat_a_bitmap_at_equal_bits() -> None:
    w, h = layer()
    low = Residual(1, None, columns="shared")
    columns = Mixed(low, Columns(0.2), 4, "columns")
    bits = columns.bits((48, 256))
    assert bits.masks == 256
    salience = Mixed(low, Salience(0.02), 4, "bitmap")
    assert salience.bits((48, 256)).total > bits.total
    errors = [h.error(Descent().solve(w, fmt, h).dequantize() - w) for fmt in (columns, salience)]
    assert errors[0] < errors[1]


def test_columns_need_their_partition() -> None:
    with pytest.raises(BadField, match="columns"):
        Mixed(Integer(2, 64), Salience(0.1), 4, "columns")
    with pytest.raises(BadField, match="share"):
        Columns(1.5)
