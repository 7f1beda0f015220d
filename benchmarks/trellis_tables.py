"""Tables of the trellis format, as in `formats/_tables.py`: Lloyd iteration of Viterbi codes of Gaussian numbers.

python benchmarks/trellis_tables.py [> FILE]; the mean squared errors of fresh numbers go to stderr.
"""

from __future__ import annotations

import sys
from statistics import NormalDist

import numpy as np

from bitwright import _core

STATES, WINDOW, WORD = 128, 7, 64
QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / STATES) for i in range(STATES)])


def draw(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def start(seed: int, bits: int) -> np.ndarray:
    """Windows that follow from one survivor differ in their first bits: spread them over the range."""
    rng = np.random.default_rng(seed)
    parts = np.stack([rng.permutation(part) for part in QUANTILES.reshape(1 << bits, -1)])
    return np.stack([rng.permutation(column) for column in parts.T]).T.reshape(-1)


def encode(x: np.ndarray, table: np.ndarray, per_word: int) -> tuple[np.ndarray, float]:
    codes = _core.encode_trellis(x, table.astype(np.float32), per_word)
    return codes, float(((x - table[codes]) ** 2).mean())


def lloyd(table: np.ndarray, x: np.ndarray, per_word: int, rounds: int) -> tuple[np.ndarray, float]:
    error = np.inf
    for _ in range(rounds):
        codes, error = encode(x, table, per_word)
        counts = np.bincount(codes.ravel(), minlength=STATES)
        sums = np.bincount(codes.ravel(), weights=x.ravel(), minlength=STATES)
        table = np.where(counts > 0, sums / np.maximum(counts, 1), table)
    return table, error


def apart(codes: np.ndarray) -> np.ndarray:
    """Integers that all differ, as near to the given ones as can be: equal values would make codes ambiguous."""
    order = np.argsort(codes, kind="stable")
    up = codes[order].copy()
    for i in range(1, STATES):
        up[i] = max(up[i], up[i - 1] + 1)
    down = codes[order].copy()
    for i in range(STATES - 2, -1, -1):
        down[i] = min(down[i], down[i + 1] - 1)
    out = np.empty_like(codes)
    out[order] = (up + down) // 2
    assert len(np.unique(out)) == STATES
    return out


def trained(per_word: int) -> tuple[np.ndarray, float, float]:
    """Codes int8, the standard deviation in steps of them is 1 / step, and the error of fresh numbers."""
    columns = 960 // per_word * per_word
    distortion = 4.0 ** (-WORD / per_word)
    starts = [
        start(seed, bits) * (1 - distortion) ** 0.5
        for bits in {WORD // per_word, -(-WORD // per_word)}
        for seed in range(40)
    ]
    screened = sorted((lloyd(t, draw(1, 32, columns), per_word, 10) for t in starts), key=lambda pair: pair[1])
    better = [lloyd(t, draw(2, 96, columns), per_word, 25) for t, _ in screened[:6]]
    table, _ = lloyd(min(better, key=lambda pair: pair[1])[0], draw(3, 512, columns), per_word, 30)
    unit = 120 / np.abs(table).max()
    codes = apart(np.rint(table * unit).astype(int))
    return codes, 1 / unit, encode(draw(4, 512, columns), codes / unit, per_word)[1]


def main() -> None:
    for per_word in (12, 16, 20, 24, 28, 32, 40, 48, 56, 64):
        codes, step, error = trained(per_word)
        print(f'    {per_word}: ({step:.6f}, "{codes.astype(np.int8).tobytes().hex()}"),')
        print(f"{WORD / per_word:.2f} bits: {error:.4f}, bound {4.0 ** (-WORD / per_word):.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
