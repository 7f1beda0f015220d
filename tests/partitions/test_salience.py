"""Salience: exact counts, what the two criteria react to, one threshold over all rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.partitions.salience import Salience
from bitwright.protocols import ColumnStats


@given(
    share=st.floats(0, 1),
    rows=st.integers(1, 20),
    columns=st.integers(1, 90),
    group=st.sampled_from([None, 7, 64]),
    scope=st.sampled_from(["matrix", "row"]),
)
@settings(max_examples=60, deadline=None)
def test_count_is_exact(share: float, rows: int, columns: int, group: int | None, scope: str) -> None:
    w = torch.randint(-2, 3, (rows, columns)).float()  # many ties
    by = Salience(share, "magnitude", group, scope)  # type: ignore[arg-type]
    assert int(by.split(w, ColumnStats.flat(columns)).sum()) == by.count((rows, columns))


def test_scaling_an_input_moves_magnitude_but_not_hessian_salience() -> None:
    """Input j times c and column j of W divided by c leave the layer alone; U_jj scales with 1 / c too."""
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    u = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.5
    scaled_w, scaled_u = w.clone(), u.clone()
    scaled_w[:, 5] /= 8
    scaled_u[5] /= 8
    ones = torch.ones(64)
    for by, same in (("hessian", True), ("magnitude", False)):
        before = Salience(0.2, by).split(w, ColumnStats(ones, u))  # type: ignore[arg-type]
        after = Salience(0.2, by).split(scaled_w, ColumnStats(ones, scaled_u))  # type: ignore[arg-type]
        assert torch.equal(before, after) is same


def test_rows_compete_with_each_other_and_groups_do_not() -> None:
    w = torch.ones(4, 64)
    w[2] = 3.0
    assert Salience(0.25, "magnitude").split(w, ColumnStats.flat(64))[2].all()
    w = torch.ones(4, 64)
    w[:, :32] = 3.0
    per_group = Salience(0.25, "magnitude", 32).split(w, ColumnStats.flat(64))
    assert int(per_group[:, :32].sum()) == int(per_group[:, 32:].sum()) == 32


def test_every_row_gets_its_share_where_each_has_its_own_threshold() -> None:
    w = torch.ones(4, 64)
    w[2] = 3.0
    mask = Salience(0.25, "magnitude", 32, "row").split(w, ColumnStats.flat(64))
    assert (mask.view(4, 2, 32).sum(2) == 8).all()
