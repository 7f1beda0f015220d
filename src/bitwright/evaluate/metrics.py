"""Numbers from token scores: perplexity, calibration, divergence from a parent, paired errors.

Calibration in the form of Choi, Kim, Lee 2023 (arXiv 2309.06248) carried to next-token prediction: the Balance score
is accuracy minus mean confidence; below 0 a model is over-confident.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from bitwright.evaluate.scores import TokenScores

FINE = 1500
"""Fine bins of the confidence: a multiple of 15, so that the usual 15 bins of equal width come out exactly."""

BINS = 15
ENOUGH_FOR_ECE = 5000
"""Below so many tokens the expected calibration error mostly measures its own bias."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Totals:
    """Sums over predictions; fixed size, merged by addition. `bins` float64 [3, FINE]: count, confidence, correct."""

    nll: float
    entropy: float
    brier: float
    power: float
    bins: Floats

    @classmethod
    def of(cls, scores: TokenScores) -> Totals:
        """The sums of these predictions."""
        at = np.minimum((scores.confidence * FINE).astype(np.int64), FINE - 1)
        columns = (np.ones(len(scores)), scores.confidence, scores.correct)
        return cls(
            nll=float(scores.nll.sum(dtype=np.float64)),
            entropy=float(scores.entropy.sum(dtype=np.float64)),
            brier=float(scores.brier.sum()),
            power=float(scores.power.sum(dtype=np.float64)),
            bins=np.stack([np.bincount(at, weights=column, minlength=FINE) for column in columns]),
        )

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.nll + other.nll,
            self.entropy + other.entropy,
            self.brier + other.brier,
            self.power + other.power,
            self.bins + other.bins,
        )

    @property
    def tokens(self) -> int:
        """Predictions counted."""
        return round(float(self.bins[0].sum()))

    @property
    def mean_nll(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """Per token; infinite where a target has no probability at all."""
        return exp(self.mean_nll) if self.mean_nll < 700 else float("inf")

    @property
    def accuracy(self) -> float:
        """Share of targets that had the highest probability."""
        return float(self.bins[2].sum()) / self.tokens

    @property
    def confidence(self) -> float:
        """Mean of the highest probability."""
        return float(self.bins[1].sum()) / self.tokens

    @property
    def balance(self) -> float:
        """Accuracy minus mean confidence: 0 is ideal, negative is over-confident."""
        return self.accuracy - self.confidence

    @property
    def mean_brier(self) -> float:
        """From 0 to 2."""
        return self.brier / self.tokens

    @property
    def excess_nll(self) -> float:
        """Mean nll minus mean entropy, in nats: 0 for a model calibrated on average, positive if over-confident."""
        return (self.nll - self.entropy) / self.tokens

    @property
    def excess_brier(self) -> float:
        """Mean Brier score minus the one the model itself expects."""
        return (self.brier + self.power) / self.tokens - 1.0

    def equal_width(self, count: int = BINS) -> Floats:
        """Sums of bins of equal width, float64 [3, count]; `count` divides FINE."""
        assert FINE % count == 0
        bins: Floats = self.bins.reshape(3, count, -1).sum(2)
        return bins

    def equal_mass(self, count: int = BINS) -> Floats:
        """Sums of bins of equal count, float64 [3, count]; fine bins are shared out in proportion at the edges."""
        filled = self.bins[:, self.bins[0] > 0]
        running = np.concatenate([np.zeros((3, 1)), np.cumsum(filled, axis=1)], axis=1)
        edges = np.linspace(0, running[0, -1], count + 1)
        return np.diff(np.stack([np.interp(edges, running[0], row) for row in running]), axis=1)

    def balance_by_confidence(self, parts: int = 3) -> list[float]:
        """Balance of the least to the most confident third: opposite errors cancel in the whole, not here."""
        count, confidence, correct = self.equal_mass(parts)
        return list(map(float, (correct - confidence) / count))


def calibration_error(bins: Floats) -> float:
    """Expected calibration error over bins [3, any] (count, confidence, correct)."""
    return float(np.abs(bins[2] - bins[1]).sum() / bins[0].sum())


@dataclass(frozen=True)
class Divergence:
    """How far a model is from its parent on the same tokens. KL(parent || model) in nats per token."""

    kl_mean: float
    kl_median: float
    kl_p99: float
    top1_agreement: float
    confidence_shift: float  # mean |difference of confidence|
    lost: float  # share of tokens right under the parent and wrong now
    gained: float  # the reverse

    @classmethod
    def of(cls, scores: TokenScores, parent: TokenScores) -> Divergence:
        """Of scores that were made beside the parent."""
        assert scores.kl is not None
        kl = scores.kl.astype(np.float64)
        return cls(
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.quantile(kl, 0.99)),
            top1_agreement=float(np.mean(scores.top1 == parent.top1)),
            confidence_shift=float(np.abs(scores.confidence - parent.confidence).mean(dtype=np.float64)),
            lost=float(np.mean(parent.correct & ~scores.correct)),
            gained=float(np.mean(scores.correct & ~parent.correct)),
        )


def standard_error(by_window: Floats) -> float | None:
    """Standard error of the mean of values [W]; tokens of one window depend on each other, so windows are the sample.

    None for a single window.
    """
    return float(by_window.std(ddof=1) / sqrt(len(by_window))) if len(by_window) > 1 else None


def perplexity_difference(a: Floats, b: Floats) -> tuple[float, float | None]:
    """Perplexity of A minus that of B, and its standard error paired over windows.

    `a`, `b` [W]: mean nll of the same windows of equal length. First order in the deviations of the windows.
    """
    of_a, of_b = np.exp(a.mean()), np.exp(b.mean())
    return float(of_a - of_b), standard_error(of_a * (a - a.mean()) - of_b * (b - b.mean()))
