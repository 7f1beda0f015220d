"""Whether a text was calibrated on: fingerprints of token runs, kept in the artifact, looked up before measuring."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RUN = 32  # tokens; shorter runs are common phrases
MOST = 2048  # runs kept of a text, spread evenly
SHARED = 0.01  # of the kept runs: above this, texts are not apart
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers never vanish modulo 2^64


def fingerprints(ids: Tensor) -> tuple[str, ...]:
    """Hashes (16 hex digits) of runs that do not overlap, at most `MOST`, of sequences int64 [S, T]."""
    length = ids.shape[1] // RUN * RUN
    hashes = _rolling(ids[:, :length].reshape(-1, RUN).numpy()).reshape(-1)
    chosen = np.unique(np.linspace(0, len(hashes) - 1, min(MOST, len(hashes))).astype(np.int64))
    return tuple(f"{h:016x}" for h in hashes[chosen])


def shared(ids: Tensor, kept: Iterable[str]) -> float:
    """Which part of the kept runs occurs somewhere in sequences int64 [S, T], at any offset."""
    wanted = np.array([int(h, 16) for h in kept], dtype=np.uint64)
    if not len(wanted) or ids.shape[1] < RUN:
        return 0.0
    return float(np.isin(wanted, _rolling(ids.numpy())).mean())


def occurring(ids: Tensor, kept: Iterable[str]) -> Tensor:
    """Bool [S]: which sequences int64 [S, T] hold one of the kept runs, at any offset."""
    wanted = np.array([int(h, 16) for h in kept], dtype=np.uint64)
    if not len(wanted) or ids.shape[1] < RUN:
        return torch.zeros(len(ids), dtype=torch.bool)
    return torch.from_numpy(np.isin(_rolling(ids.numpy()), wanted).any(axis=1))


def _rolling(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [S, T - RUN + 1]: sum of (id + 1) BASE^k over each run, modulo 2^64."""
    values = ids.astype(np.uint64) + np.uint64(1)
    count = ids.shape[1] - RUN + 1
    hashes = np.zeros((len(ids), count), dtype=np.uint64)
    for k in range(RUN):
        hashes = hashes * np.uint64(BASE) + values[:, k : k + count]
    return hashes
