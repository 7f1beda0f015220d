"""What a measurement says, as a value; every number is derived from scores of single tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from math import exp
from typing import Any

import numpy as np

from bitwright.evaluate.metrics import (
    ENOUGH_FOR_ECE,
    Divergence,
    Floats,
    Totals,
    calibration_error,
    perplexity_difference,
    standard_error,
)
from bitwright.evaluate.protocol import Protocol
from bitwright.evaluate.scores import TokenScores, concatenate


@dataclass(frozen=True)
class Result:
    """One model measured by one protocol; `reference` is the float model on the same windows, if there was one."""

    name: str
    protocol: Protocol
    windows: tuple[TokenScores, ...]
    seconds: float  # in this model, the reference not counted
    peak_rss_bytes: int  # of the process: everything that was loaded in it
    engine: str = "torch"  # what computed the logits: "torch", or "native" for the compiled engine
    reference: Result | None = None

    @cached_property
    def scores(self) -> TokenScores:
        """All tokens in order."""
        return concatenate(self.windows)

    @cached_property
    def totals(self) -> Totals:
        """Perplexity and calibration."""
        return Totals.of(self.scores)

    @cached_property
    def divergence(self) -> Divergence | None:
        """From the reference."""
        return None if self.reference is None else Divergence.of(self.scores, self.reference.scores)

    @property
    def nll_by_window(self) -> Floats:
        """Mean nll of each window, float64 [W]."""
        return np.array([w.nll.mean(dtype=np.float64) for w in self.windows])

    @property
    def word_perplexity(self) -> float:
        """Per white-space word: comparable between tokenizers."""
        return exp(min(self.totals.nll / max(self.protocol.words, 1), 700.0))

    def ece(self, *, equal_mass: bool = False) -> float | None:
        """Expected calibration error, 15 bins; None below 5000 tokens, where it measures its own bias."""
        if self.totals.tokens < ENOUGH_FOR_ECE:
            return None
        return calibration_error(self.totals.equal_mass() if equal_mass else self.totals.equal_width())

    def to_json(self) -> dict[str, Any]:
        """Stable keys; what was not measured is null."""
        t = self.totals
        balances = np.array([float(w.correct.mean()) - w.confidence.mean(dtype=np.float64) for w in self.windows])
        return {
            "name": self.name,
            "perplexity": t.perplexity,
            "word_perplexity": self.word_perplexity,
            "nll": t.mean_nll,
            "windows": self.protocol.windows,
            "tokens": t.tokens,
            "accuracy": t.accuracy,
            "confidence": t.confidence,
            "brier": t.mean_brier,
            "brier_excess": t.excess_brier,
            "nll_excess": t.excess_nll,
            "ece": self.ece(),
            "ece_equal_mass": self.ece(equal_mass=True),
            "balance": t.balance,
            "balance_se": standard_error(balances),
            "balance_by_confidence": t.balance_by_confidence(),
            **self._against_reference(),
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "protocol": {**self.protocol.to_json(), "engine": self.engine},
        }

    def _against_reference(self) -> dict[str, Any]:
        keys = (*Divergence.__dataclass_fields__, "kl_se", "perplexity_difference", "perplexity_difference_se")
        if self.reference is None or self.divergence is None:
            return {**dict.fromkeys(keys), "reference": None}
        difference, error = perplexity_difference(self.nll_by_window, self.reference.nll_by_window)
        kl_by_window = np.array([w.kl.mean(dtype=np.float64) for w in self.windows if w.kl is not None])
        parent = self.reference
        return {
            **asdict(self.divergence),
            "kl_se": standard_error(kl_by_window),
            "perplexity_difference": difference,
            "perplexity_difference_se": error,
            "reference": {
                "name": parent.name,
                "perplexity": parent.totals.perplexity,
                "brier": parent.totals.mean_brier,
                "ece": parent.ece(),
                "balance": parent.totals.balance,
            },
        }
