"""Weights per nanosecond of every kernel on one core: by width, group, tokens and instruction-set level.

python benchmarks/kernels.py [--rows 512 --columns 1536] [--ghz 3.67] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from bitwright import _core
from bitwright.formats._layout import pack_codes
from bitwright.protocols import Dense, Sparse, Term


def dense(rows: int, columns: int, width: int | str, group: int) -> Dense:
    levels = 3 if isinstance(width, str) else 1 << width
    codes = torch.randint(0, levels, (rows, columns), dtype=torch.uint8)
    scales = torch.rand(-(-rows // 16), -(-columns // group), 16).half()
    return Dense(pack_codes(codes, width), width, scales, None, -(levels - 1) / 2, group, group)


def words(rows: int, columns: int, per_word: int) -> Dense:
    codes = torch.randint(0, 256, (-(-rows // 16), -(-columns // per_word), 128), dtype=torch.uint8)
    half = torch.randint(1, 256, (64,))
    table = torch.cat([half, 256 - half]).to(torch.uint8)
    scales = torch.rand(-(-rows // 16), 1, 16).half()
    run = 128 if 128 % per_word == 0 else 144 // per_word * per_word
    return Dense(codes, "trellis", scales, None, -128.0, None, run, table=table, per_word=per_word)


def bitmap(rows: int, columns: int, share: float, bits: int, group: int) -> Sparse:
    index = pack_codes((torch.rand(rows, columns) < share).to(torch.uint8), 1)
    counts = ((index.flatten(1).unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)) & 1).sum((1, 2))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    values = torch.randint(0, 256, (int(starts[-1]) * bits // 8 + 1,), dtype=torch.uint8)
    scales = torch.rand(-(-rows // 16), 1, 16).half()
    return Sparse("bitmap", index, values, bits, scales, scales, starts, None, 0, group)


def blocks(rows: int, columns: int, block: int, group: int) -> Sparse:
    shape = (-(-rows // 16), -(-columns // block), 64)
    index = torch.randint(0, block // 4, shape, dtype=torch.uint8)
    index += torch.arange(4, dtype=torch.uint8).repeat(16) * (block // 4)
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    scales = torch.rand(shape[0], 1, 16).half()
    return Sparse("nm", index, values, 8, scales, scales, None, None, block, group)


def cases(rows: int, columns: int) -> dict[str, tuple[Term, ...]]:
    shape = rows, columns
    found: dict[str, tuple[Term, ...]] = {
        f"{width} bit, group {group}": (dense(*shape, width, group),)
        for width in (1, 2, 3, 4, 5, 8)
        for group in (128, 64)
    }
    found["base 3, group 160"] = (dense(*shape, "base3", 160),)
    for per_word in (12, 16, 20, 24, 28, 32, 40, 48, 56, 64):
        found[f"trellis, {64 / per_word:.2f} bit"] = (words(*shape, per_word),)
    for share in (0.05, 0.1, 0.3):
        for bits in (8, 4):
            sparse = bitmap(*shape, share, bits, 128)
            found[f"1 bit + bitmap {share:.0%} of {bits} bit"] = (dense(*shape, 1, 128), sparse)
    for block in (64, 128):
        found[f"1 bit + 4 in {block}"] = (dense(*shape, 1, 128), blocks(*shape, block, 128))
    return found


def rate(terms: tuple[Term, ...], shape: tuple[int, int], tokens: int) -> float:
    matrix = _core.Matrix(terms, *shape)
    x = torch.randn(tokens, shape[1])
    repeats = max(31, int(3e8 / (shape[0] * shape[1] * tokens)))
    matrix.kernel_seconds(x, 5)
    return shape[0] * shape[1] * tokens / matrix.kernel_seconds(x, repeats) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=1536)
    parser.add_argument("--ghz", type=float, help="core clock: also print weights per cycle")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = options.rows, options.columns
    per = 1 / options.ghz if options.ghz else 1.0
    print(f"{'weights per cycle' if options.ghz else 'weights per ns'}, load average {os.getloadavg()[0]:.1f}")
    results: dict[str, dict[str, list[float]]] = {}
    for isa in _core.cpu_info()["levels"][:-1]:
        _core.set_isa(isa)
        print(f"{isa:32} {'1 token':>9} {'16':>9} {'64':>9}")
        for name, terms in cases(*shape).items():
            rates = [rate(terms, shape, tokens) for tokens in (1, 16, 64)]
            results.setdefault(isa, {})[name] = rates
            print(f"{name:32}" + "".join(f" {r * per:9.1f}" for r in rates))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
