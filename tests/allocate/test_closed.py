"""Closed-form bits: the identities of BAQ (arXiv 2506.05664)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitwright.allocate.closed import greedy_bits, water_filling
from bitwright.errors import Refused

C = np.exp(np.random.default_rng(0).normal(0, 2, 50))
SIZE = np.random.default_rng(1).integers(1, 9, 50).astype(float)


def test_losses_become_equal_and_the_mean_is_kept() -> None:
    bits = water_filling(C, np.ones(50), 2.0)
    assert bits.mean() == pytest.approx(2.0, abs=1e-12)
    losses = C * 0.25**bits
    assert losses.max() / losses.min() == pytest.approx(1, rel=1e-9)
    geometric = np.exp(np.log(C).mean())
    assert losses.sum() / (C * 0.25**2).sum() == pytest.approx(geometric / C.mean())


def test_units_of_other_sizes_lose_the_same_a_weight() -> None:
    bits = water_filling(C, SIZE, 3.0)
    assert (SIZE * bits).sum() == pytest.approx(3.0 * SIZE.sum())
    assert np.ptp(np.log(C * 0.25**bits / SIZE)) < 1e-9


def test_a_factor_of_four_is_a_bit() -> None:
    more = C.copy()
    more[7] *= 4
    change = water_filling(more, np.ones(50), 2.0) - water_filling(C, np.ones(50), 2.0)
    assert change[7] == pytest.approx(1 - 1 / 50)
    assert np.delete(change, 7) == pytest.approx(-1 / 50)
    assert water_filling(C * 9, SIZE, 2.0) == pytest.approx(water_filling(C, SIZE, 2.0))


def test_bounds_are_water_levels() -> None:
    bits = water_filling(C, SIZE, 2.0, 1.0, 3.0)
    assert (SIZE * bits).sum() == pytest.approx(2.0 * SIZE.sum())
    marginal = C * 0.25**bits / SIZE
    inside = marginal[(bits > 1) & (bits < 3)]
    assert np.ptp(np.log(inside)) < 1e-6
    assert (marginal[bits == 1] <= inside.mean() * 1.000001).all()
    assert (marginal[bits == 3] >= inside.mean() * 0.999999).all()
    with pytest.raises(Refused):
        water_filling(C, SIZE, 4.0, 1.0, 3.0)


def test_whole_bits_equal_enumeration() -> None:
    c = C[:6]
    found = greedy_bits(c, np.ones(6, dtype=np.int64), 12, 0, 4)
    best = min(((c * 0.25 ** np.array(b)).sum(), b) for b in itertools.product(range(5), repeat=6) if sum(b) <= 12)
    assert (c * 0.25**found).sum() == pytest.approx(best[0])
    with pytest.raises(Refused, match="needed"):
        greedy_bits(c, np.ones(6, dtype=np.int64), 5, 1, 4)
