"""Tables of the trellis format, as in `formats/_tables.py`: Lloyd iteration of Viterbi codes of Gaussian numbers.

The last bit of a window turns the sign of its value. That costs nothing (docs/quality.md) and halves the table, whose
size is what looking up takes on processors that shuffle 16 bytes.

python benchmarks/trellis_tables.py [> FILE]; the mean squared errors of fresh numbers go to stderr.
"""

from __future__ import annotations

import sys
from statistics import NormalDist

import numpy as np

from bitwright import _core

STATES, WINDOW, WORD = 128, 7, 64
HALF = STATES // 2


def draw(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def gaussian(seed: int) -> np.ndarray:
    """Gaussian values of standard deviation 1."""
    half = np.random.default_rng(seed).standard_normal(HALF)
    return mirrored(half / half.std())


def spread(seed: int, bits: int) -> np.ndarray:
    """Windows that follow from one survivor differ in their last `bits` bits: they are spread over the range."""
    rng, normal = np.random.default_rng(seed), NormalDist()
    sizes = np.array([normal.inv_cdf(0.5 + (i + 0.5) / STATES) for i in range(HALF)])
    parts = np.stack([rng.permutation(part) for part in sizes.reshape(1 << (bits - 1), -1)])
    parts = np.stack([rng.permutation(column) for column in parts.T]).T
    return mirrored(parts.reshape(-1) * rng.choice([-1.0, 1.0], HALF))


def mirrored(half: np.ndarray) -> np.ndarray:
    """Values of all windows."""
    return np.concatenate([half, -half])


def encode(x: np.ndarray, table: np.ndarray, per_word: int) -> tuple[np.ndarray, float]:
    codes = _core.encode_trellis(x, table.astype(np.float32), per_word)
    return codes, float(((x - table[codes]) ** 2).mean())


def lloyd(table: np.ndarray, x: np.ndarray, per_word: int, rounds: int) -> tuple[np.ndarray, float]:
    error = np.inf
    for _ in range(rounds):
        codes, error = encode(x, table, per_word)
        place, sign = codes.ravel() % HALF, np.where(codes.ravel() < HALF, 1.0, -1.0)
        counts = np.bincount(place, minlength=HALF)
        sums = np.bincount(place, weights=x.ravel() * sign, minlength=HALF)
        table = mirrored(np.where(counts > 0, sums / np.maximum(counts, 1), table[:HALF]))
    return table, error


def apart(codes: np.ndarray) -> np.ndarray:
    """Integers whose sizes all differ, as near to the given ones as can be: equal values would make codes ambiguous."""
    sizes = np.abs(codes)
    order = np.argsort(sizes, kind="stable")
    up = sizes[order].copy()
    for i in range(HALF):
        up[i] = max(up[i], up[i - 1] + 1 if i else 1)
    down = sizes[order].copy()
    for i in range(HALF - 2, -1, -1):
        down[i] = min(down[i], down[i + 1] - 1)
    out = np.empty_like(codes)
    out[order] = np.maximum((up + down) // 2, np.arange(1, HALF + 1))
    assert len(np.unique(out)) == HALF
    return np.where(codes < 0, -out, out)


def trained(per_word: int) -> tuple[np.ndarray, float, float]:
    """Codes int8 of the first half, how much one of them is in standard deviations, and the error of fresh numbers."""
    columns = 960 // per_word * per_word
    distortion = 4.0 ** (-WORD / per_word)
    starts = [gaussian(seed) for seed in range(600)]
    starts += [spread(seed, bits) for bits in {WORD // per_word, -(-WORD // per_word)} for seed in range(200)]
    starts = [table * (1 - distortion) ** 0.5 for table in starts]
    screened = sorted((lloyd(t, draw(1, 32, columns), per_word, 10) for t in starts), key=lambda pair: pair[1])
    better = sorted((lloyd(t, draw(2, 96, columns), per_word, 25) for t, _ in screened[:24]), key=lambda pair: pair[1])
    best = (lloyd(t, draw(3, 512, columns), per_word, 30) for t, _ in better[:8])
    table, _ = min(best, key=lambda pair: pair[1])
    unit = 120 / np.abs(table).max()
    codes = apart(np.rint(table[:HALF] * unit).astype(int))
    return codes, 1 / unit, encode(draw(4, 512, columns), mirrored(codes / unit), per_word)[1]


def main() -> None:
    for per_word in (12, 16, 20, 24, 28, 32, 40, 48, 56, 64):
        codes, step, error = trained(per_word)
        print(f'    {per_word}: ({step:.6f}, "{codes.astype(np.int8).tobytes().hex()}"),')
        print(f"{WORD / per_word:.2f} bits: {error:.4f}, bound {4.0 ** (-WORD / per_word):.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
