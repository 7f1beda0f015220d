"""Bits in closed form where a unit loses c 4^-R at R bits (BAQ, arXiv 2506.05664; reverse water-filling)."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import Refused

Floats = NDArray[np.float64]


def water_filling(c: Floats, size: Floats, mean_bits: float, least: float = -np.inf, most: float = np.inf) -> Floats:
    """Continuous bits [K] of least sum c 4^-R under sum size R = mean_bits sum size and least <= R <= most.

    Without bounds R = mean_bits + log2(c / size) / 2 minus its weighted mean; at bounds the level is found by
    bisection, so that every unit between them has the same loss a weight.
    """
    if not least <= mean_bits <= most:
        raise Refused(f"a mean of {mean_bits} bits is not between {least} and {most}.")
    level = np.log2(np.maximum(c, 1e-12 * c.max()) / size) / 2
    share = size / size.sum()
    if np.isinf(least) and np.isinf(most):
        return np.asarray(mean_bits + level - (share * level).sum())
    low = level.min() - (most if np.isfinite(most) else mean_bits + np.ptp(level) + 1)
    high = level.max() - (least if np.isfinite(least) else mean_bits - np.ptp(level) - 1)
    for _ in range(200):
        middle = (low + high) / 2
        spent = (share * np.clip(level - middle, least, most)).sum()
        low, high = (middle, high) if spent > mean_bits else (low, middle)
    return np.asarray(np.clip(level - (low + high) / 2, least, most))


def greedy_bits(c: Floats, size: NDArray[np.int64], total: int, least: int, most: int) -> NDArray[np.int64]:
    """Whole bits [K] with sum size b <= total: one more bit at a time to the unit that gains most a weight.

    Optimal for equal sizes, as every curve is convex.
    """
    bits = np.full(len(c), least, dtype=np.int64)
    left = total - int((size * least).sum())
    if left < 0:
        raise Refused(f"{total} bits are fewer than {least} a weight: {total - left} are needed.")
    gain = c / size * (1 - 0.25)
    heap = [(-gain[j] * 0.25**least, j) for j in range(len(c)) if least < most]
    heapq.heapify(heap)
    while heap:
        _, j = heapq.heappop(heap)
        if size[j] > left:
            continue
        left -= int(size[j])
        bits[j] += 1
        if bits[j] < most:
            heapq.heappush(heap, (-gain[j] * 0.25 ** bits[j], j))
    return bits
