"""From logits to what is kept of each predicted token: one softmax a model, no logits stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwright.runtime import native

CHUNK = 1 << 22
"""Logits worked on at once: 16 MB of float32. Larger ones leave the cache, smaller ones wait for threads more often."""


@dataclass(frozen=True)
class TokenScores:
    """What is kept of n predictions with probabilities P; arrays [n], float32 unless said. Natural logarithms."""

    nll: NDArray[np.float32]  # -log P[target]
    confidence: NDArray[np.float32]  # max P
    entropy: NDArray[np.float32]  # -sum P log P
    power: NDArray[np.float32]  # sum P^2, which is what the model expects 1 - Brier to be
    top1: NDArray[np.int32]  # argmax P
    correct: NDArray[np.bool_]  # top1 is the target
    kl: NDArray[np.float32] | None  # KL(parent || P); None without a parent

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def brier(self) -> NDArray[np.float64]:
        """sum_v (P_v - 1[v is the target])^2, from 0 to 2."""
        return 1.0 - 2.0 * np.exp(-self.nll.astype(np.float64)) + self.power


def score_(logits: Tensor, targets: Tensor, parent: Tensor | None = None) -> TokenScores:
    """Scores of n predictions; `logits` float32 [n, V] become log-probabilities in place.

    `targets` int64 [n]; `parent` log-probabilities float32 [n, V] of the model to compare with (what a call of this
    function on its logits has left there).
    """
    if native.available()[0]:
        return _score_compiled_(logits, targets, parent)
    rows = max(1, CHUNK // logits.shape[1])
    parts = [
        _score_chunk_(
            logits[at : at + rows], targets[at : at + rows], None if parent is None else parent[at : at + rows]
        )
        for at in range(0, len(logits), rows)
    ]
    return concatenate(parts)


def _score_compiled_(logits: Tensor, targets: Tensor, parent: Tensor | None) -> TokenScores:
    from bitwright import _core

    columns = _core.score(logits.detach(), targets, parent, torch.get_num_threads())
    return TokenScores(**columns, correct=columns["top1"] == targets.numpy())


def _score_chunk_(logits: Tensor, targets: Tensor, parent: Tensor | None) -> TokenScores:
    logs = torch.log_softmax(logits, -1, out=logits)
    p = logs.exp()
    best, top1 = logs.max(-1)
    return TokenScores(
        nll=-logs.gather(1, targets[:, None])[:, 0].numpy(),
        confidence=best.exp().numpy(),
        entropy=-torch.linalg.vecdot(p, logs).numpy(),
        power=torch.linalg.vecdot(p, p).numpy(),
        top1=top1.to(torch.int32).numpy(),
        correct=(top1 == targets).numpy(),
        # Differences first, sum after: two close models would lose their digits in a difference of two sums.
        kl=None if parent is None else _divergence(parent, logs, into=p).numpy(),
    )


def _divergence(parent: Tensor, logs: Tensor, into: Tensor) -> Tensor:
    weights = torch.exp(parent, out=into)
    total: Tensor = torch.linalg.vecdot(weights, parent - logs)
    return total.clamp_(min=0)


def concatenate(parts: Iterable[TokenScores]) -> TokenScores:
    """Scores one after the other; the divergence only where every part has it."""
    parts = list(parts)
    divergences = [part.kl for part in parts if part.kl is not None]
    return TokenScores(
        nll=np.concatenate([part.nll for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
        power=np.concatenate([part.power for part in parts]),
        top1=np.concatenate([part.top1 for part in parts]),
        correct=np.concatenate([part.correct for part in parts]),
        kl=np.concatenate(divergences) if len(divergences) == len(parts) else None,
    )
