"""Reference values: p drawn from Beta(2, 2), outcomes from p, 200 000 samples (calibration of binary forecasts)."""

from math import exp, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.evaluate.metrics import (
    Divergence,
    Totals,
    calibration_error,
    perplexity_difference,
    standard_error,
)
from bitwright.evaluate.scores import TokenScores, concatenate, score_

N = 200_000


def totals_of(confidence: np.ndarray, correct: np.ndarray) -> Totals:
    column = np.asarray(confidence, dtype=np.float32)
    zero = np.zeros_like(column)
    return Totals.of(TokenScores(zero, column, zero, zero, zero.astype(np.int32), np.asarray(correct, bool), None))


def binary(q: np.ndarray, outcome: np.ndarray) -> Totals:
    """A forecast q of outcome 1 as a model with two tokens; the tie q = 0.5 decides for 1."""
    p = torch.tensor(np.stack([q, 1 - q], 1))
    return Totals.of(score_(p.log().float(), torch.tensor(1 - outcome)))


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 2, N)
    return p, (rng.random(N) < p).astype(np.int64)


def logit_map(p: np.ndarray, scale: float, shift: float) -> np.ndarray:
    return 1 / (1 + ((1 - p) / p) ** scale * exp(-shift))


def test_balance_is_the_score_of_the_paper() -> None:
    rng = np.random.default_rng(3)
    q = np.round(rng.random(100_000), 2)  # ties at 0.5 included
    q = q.clip(0.01, 0.99)
    y = rng.integers(0, 2, len(q))
    f = np.select([(q >= 0.5) & (y == 1), (q >= 0.5) & (y == 0), (q < 0.5) & (y == 0)], [1 - q, -q, q], q - 1)
    assert binary(q, y).balance == pytest.approx(f.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "shift", "balance", "accuracy", "confidence", "brier", "ece"),
    [
        (1.0, 0.0, 0.000, 0.6875, 0.6877, 0.1999, 0.0014),
        (2.0, 0.0, -0.102, 0.6875, 0.7899, 0.2124, 0.1024),
        (0.5, 0.0, +0.082, 0.6875, 0.6053, 0.2088, 0.0822),
        (1.0, 0.5, -0.037, 0.6660, 0.7028, 0.2105, 0.0368),
    ],
)
def test_reference_values(
    scale: float, shift: float, balance: float, accuracy: float, confidence: float, brier: float, ece: float
) -> None:
    p, y = draw()
    found = binary(logit_map(p, scale, shift), y)
    within = 3 * 0.5 / sqrt(N)
    assert found.balance == pytest.approx(balance, abs=within)
    assert found.accuracy == pytest.approx(accuracy, abs=within)
    assert found.confidence == pytest.approx(confidence, abs=within)
    assert found.mean_brier / 2 == pytest.approx(brier, abs=within)  # over both outcomes: twice the binary score
    assert calibration_error(found.equal_width()) == pytest.approx(ece, abs=within)


def test_a_constant_forecast_at_the_base_rate_is_calibrated_and_worthless() -> None:
    _, y = draw()
    found = binary(np.full(N, 0.5001), y)
    assert found.balance == pytest.approx(0, abs=3 * 0.5 / sqrt(N))
    assert found.mean_brier / 2 == pytest.approx(0.25, abs=0.001)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 400), shape=st.floats(0.1, 5))
@settings(deadline=None)
def test_balance_never_exceeds_the_calibration_error(seed: int, n: int, shape: float) -> None:
    rng = np.random.default_rng(seed)
    found = totals_of(rng.beta(shape, 1, n), rng.random(n) < rng.random(n))
    for count in (1, 5, 15, 100):
        for bins in (found.equal_width(count), found.equal_mass(count)):
            assert abs(found.balance) <= calibration_error(bins) + 1e-9
            assert bins.sum(1) == pytest.approx(found.bins.sum(1))
    assert calibration_error(found.equal_width(1)) == pytest.approx(abs(found.balance), abs=1e-12)


def sampled(n: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(n, 40, generator=generator) * 2
    targets = torch.multinomial(torch.softmax(z, -1), 1, generator=generator)[:, 0]
    return z * scale, targets


def test_a_model_that_tells_the_truth_has_no_excess() -> None:
    z, targets = sampled(40_000)
    scores = score_(z, targets)
    found = Totals.of(scores)
    surprise, surplus = scores.nll - scores.entropy, scores.brier + scores.power - 1
    assert abs(found.balance) < 3 * 0.5 / sqrt(len(scores))
    assert abs(found.excess_nll) < 3 * surprise.std() / sqrt(len(scores))
    assert abs(found.excess_brier) < 3 * surplus.std() / sqrt(len(scores))
    assert found.excess_nll == pytest.approx(surprise.mean(dtype=np.float64))
    assert found.perplexity == pytest.approx(exp(scores.nll.mean(dtype=np.float64)))


def test_over_confidence_has_the_right_sign() -> None:
    found = Totals.of(score_(*sampled(5000, scale=2.0)))
    assert found.balance < -0.05
    assert found.excess_nll > 0.1
    assert found.excess_brier > 0.05


def test_opposite_errors_show_by_confidence() -> None:
    confidence = np.repeat([0.2, 0.5, 0.8], 1000)
    correct = np.concatenate([np.arange(1000) < hits for hits in (300, 500, 700)])
    found = totals_of(confidence, correct)
    assert found.balance == pytest.approx(0, abs=1e-6)
    assert found.balance_by_confidence() == pytest.approx([0.1, 0, -0.1], abs=1e-6)


def test_halves_merge_into_the_whole() -> None:
    scores = score_(*sampled(3000))
    first, second = (
        score_(z, targets) for z, targets in zip(*(half.split(1500) for half in sampled(3000)), strict=True)
    )
    merged, whole = Totals.of(first) + Totals.of(second), Totals.of(scores)
    assert (merged.bins[0] == whole.bins[0]).all()
    for name in ("perplexity", "balance", "mean_brier", "excess_nll", "excess_brier"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), abs=1e-12)


def test_fine_bins_are_as_good_as_sorting() -> None:
    p, y = draw(1)
    confidence = logit_map(np.maximum(p, 1 - p), 1.5, 0)
    correct = y == (p >= 0.5)
    order = np.argsort(confidence, kind="stable")
    parts = [(correct[part].sum() - confidence[part].sum()) for part in np.array_split(order, 15)]
    found = totals_of(confidence, correct)
    assert calibration_error(found.equal_mass()) == pytest.approx(np.abs(parts).sum() / N, abs=1e-3)


def test_confidence_one_is_in_the_last_bin() -> None:
    assert totals_of(np.ones(3), np.ones(3)).equal_width()[0].tolist() == [0] * 14 + [3]


def test_divergence_of_a_model_from_itself() -> None:
    z, targets = sampled(500)
    parent_logs = z.clone()
    parent = score_(parent_logs, targets)
    found = Divergence.of(score_(z, targets, parent_logs), parent)
    assert found == Divergence(0, 0, 0, 1, 0, 0, 0)


def test_divergence_counts_flips_and_quantiles() -> None:
    column = np.zeros(100, np.float32)
    right = np.arange(100) < 50

    def scores(top1: np.ndarray, correct: np.ndarray) -> TokenScores:
        return TokenScores(column, column, column, column, top1, correct, np.arange(100, dtype=np.float32))

    parent = scores(np.zeros(100, np.int32), right)
    found = Divergence.of(scores((np.arange(100) >= 90).astype(np.int32), np.roll(right, 10)), parent)
    assert (found.lost, found.gained, found.top1_agreement) == (0.1, 0.1, 0.9)
    assert (found.kl_mean, found.kl_median) == (49.5, 49.5)
    assert found.kl_p99 == pytest.approx(98.01)


def test_divergence_sees_what_accuracy_does_not() -> None:
    z, targets = sampled(20_000)
    noisy = z * (1 + 0.03 * torch.randn(z.shape, generator=torch.Generator().manual_seed(6)))
    parent = score_(z, targets)
    student = score_(noisy, targets, z)
    found = Divergence.of(student, parent)
    accuracies = Totals.of(parent).accuracy, Totals.of(student).accuracy
    assert student.kl is not None
    assert found.kl_mean > 20 * student.kl.std() / sqrt(len(student))  # far beyond its error
    assert abs(accuracies[0] - accuracies[1]) < 0.5 / sqrt(len(student))  # within its error


def test_paired_error_is_the_spread_of_the_difference() -> None:
    rng = np.random.default_rng(7)
    windows = 40

    def differences(count: int) -> list[tuple[float, float | None]]:
        hard = rng.normal(3.0, 0.3, (count, windows))  # what both models share does not count
        worse = rng.normal(0.05, 0.02, (count, windows))
        return [perplexity_difference(a, b) for a, b in zip(hard + worse, hard, strict=True)]

    found = differences(400)
    errors = [error for _, error in found if error is not None]
    spread = np.std([difference for difference, _ in found])
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert perplexity_difference(np.array([3.0, 3.2]), np.array([3.0, 3.2])) == (0.0, 0.0)


def test_one_window_has_no_error() -> None:
    assert standard_error(np.array([3.0])) is None
    assert perplexity_difference(np.array([3.1]), np.array([3.0]))[1] is None


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    z = torch.tensor([[0.0, -2000.0]])
    assert Totals.of(score_(z, torch.tensor([1]))).perplexity == float("inf")


def test_divergence_survives_only_where_all_parts_have_it() -> None:
    z, targets = sampled(10)
    logs = torch.log_softmax(z, -1)
    with_parent, without = score_(z.clone(), targets, logs), score_(z.clone(), targets)
    assert concatenate([with_parent, without]).kl is None
    assert concatenate([with_parent, with_parent]).kl is not None
