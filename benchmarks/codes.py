"""What codes lose of Gaussian numbers: trellis words, the lattice code E8P12 of QuIP#, the best scalar levels.

Rotated weights are nearly Gaussian, so this is what a code is worth before any weighting by inputs. Mean squared error
a number, of numbers with variance 1 and with the best common scale, beside the least possible, 4^-bits.

    python benchmarks/codes.py
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from bitwright import _core
from bitwright.formats.trellis import PER_WORD, Trellis

COUNT = 1 << 18
SHIFT = 0.25


def draw() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)


def patterns() -> np.ndarray:
    """Absolute values of the 256 lattice points that E8P12 keeps, float32 [256, 8]."""
    every = np.array(list(product((0.5, 1.5, 2.5), repeat=8)), dtype=np.float32)
    norms = (every**2).sum(1)
    near, far = every[norms <= 10], every[(norms == 12) & (every.max(1) < 2)]
    assert len(near) == 227
    return np.concatenate([near, far[:29]])


def lattice(x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The nearest points of E8P12 to vectors [N, 8]: patterns with signs, the sum even, all shifted by a quarter."""
    best, error = np.zeros_like(x), np.full(len(x), np.inf, dtype=np.float32)
    odd = kept.sum(1).astype(np.int64) % 2
    for shift in (SHIFT, -SHIFT):
        moved = x - shift
        size, negative = np.abs(moved), moved < 0
        wrong = (negative.sum(1)[:, None] + odd) % 2 == 1  # [N, 256]: the sum of the signed pattern is odd
        costs = size[:, None, :] * kept  # [N, 256, 8]: a quarter of what another sign of one entry costs
        cost = (size**2).sum(1)[:, None] - 2 * costs.sum(2) + (kept**2).sum(1) + np.where(wrong, 4 * costs.min(2), 0)
        chosen = cost.argmin(1)
        rows = np.arange(len(x))
        flips = negative.copy()
        flips[rows, costs[rows, chosen].argmin(1)] ^= wrong[rows, chosen]
        better = cost[rows, chosen] < error
        error = np.where(better, cost[rows, chosen], error)
        best[better] = (np.where(flips, -kept[chosen], kept[chosen]) + shift)[better]
    return best


def lattice_error(x: np.ndarray) -> float:
    """Of E8P12 with the best of a few scales."""
    kept, vectors = patterns(), x.reshape(-1, 8)

    def error(scale: float) -> float:
        parts = np.split(vectors / scale, 64)
        return float(np.mean([((part - lattice(part, kept)) ** 2).mean() for part in parts]) * scale**2)

    return min(error(scale) for scale in (0.90, 0.94, 0.98, 1.02, 1.06))


def scalar_error(x: np.ndarray, bits: int) -> float:
    """Of the best 2^bits levels (Lloyd's iteration)."""
    levels = np.quantile(x, (np.arange(1 << bits) + 0.5) / (1 << bits))
    for _ in range(200):
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        levels = np.bincount(codes, weights=x) / np.bincount(codes)
    return float(((x - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]) ** 2).mean())


def trellis_error(x: np.ndarray, per_word: int) -> float:
    """Of the trellis format with the best of a few scales."""
    rows = x[: len(x) // per_word * per_word].reshape(-1, per_word)
    windows = torch.arange(128, dtype=torch.int32)[None]
    values = Trellis(per_word).decode(windows, {"scale": torch.ones(1, 1)})[0].numpy()

    def error(scale: float) -> float:
        table = (values * scale).astype(np.float32)
        return float(((rows - table[_core.encode_trellis(rows, table, per_word)]) ** 2).mean())

    usual = 1 / float(np.sqrt((values**2).mean()))
    return min(error(usual * factor) for factor in np.arange(0.8, 1.8, 0.025))


def main() -> None:
    x = draw()
    found = [(f"trellis, {n} numbers a word", 64 / n, trellis_error(x, n)) for n in PER_WORD]
    found += [(f"scalar, {1 << bits} levels", float(bits), scalar_error(x, bits)) for bits in (1, 2, 3, 4)]
    found.append(("lattice E8P12", 2.0, lattice_error(x)))
    print("| code | bits | error | least possible |\n| --- | ---: | ---: | ---: |")
    for name, bits, error in sorted(found, key=lambda row: (row[1], -row[2])):
        print(f"| {name} | {bits:.2f} | {error:.4f} | {4**-bits:.4f} |")


if __name__ == "__main__":
    main()
