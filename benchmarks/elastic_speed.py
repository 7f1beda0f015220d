"""Decoding with stacks of sign blocks as they are stored, against the same weights decoded when they are loaded.

One thread, the best of several turns; values do not change the time, so weights are only rounded. Run:

    python benchmarks/elastic_speed.py MODEL
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

from torch import nn

from bitwright.formats.integer import Integer
from bitwright.formats.stack import Stack
from bitwright.protocols import Format
from bitwright.runtime import engine
from bitwright.runtime.linear import QEmbedding, QLinear, TiedHead
from bitwright.runtime.load import load_float
from bitwright.solvers.rtn import Rtn

TURNS, TOKENS = 6, 120
TABLE = Integer(8, 64, "symmetric")
WAYS: dict[str, Format | None] = {
    **{f"{blocks} blocks as stored": Stack(blocks) for blocks in (1, 2, 3, 4, 6, 8)},
    "2 blocks of rank 2": Stack(2, rank=2),
    "decoded to 8 bits": TABLE,
    "decoded to float32": None,
}


def packed(model: Any, fmt: Format | None) -> Any:
    """A copy of a model with tied embedding, its block linears in `fmt` (None: float)."""
    model = copy.deepcopy(model)
    for block in model.model.layers if fmt is not None else ():
        for parent in (block.self_attn, block.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    layer = QLinear(fmt, tuple(linear.weight.shape))
                    layer.fill(Rtn().solve(linear.weight.data, fmt, None).planes)
                    setattr(parent, name, layer)
    weight = model.model.embed_tokens.weight.data
    table = QEmbedding(TABLE, tuple(weight.shape))
    table.fill(Rtn().solve(weight, TABLE, None).planes)
    model.model.embed_tokens, model.lm_head = table, TiedHead(table)
    return model


def main(name: str) -> None:
    """The table, in Markdown."""
    model = load_float(name).requires_grad_(False)
    engines = {way: engine.build(packed(model, fmt), threads=1) for way, fmt in WAYS.items()}
    best = dict.fromkeys(engines, 0.0)
    for _ in range(TURNS):
        for way, runs in engines.items():
            start = time.perf_counter()
            count = sum(1 for _ in runs.tokens([1, 5, 9], TOKENS))
            best[way] = max(best[way], count / (time.perf_counter() - start))
    print("| weights | bytes a token | tokens/s |\n| --- | ---: | ---: |")
    for way, runs in engines.items():
        print(f"| {way} | {runs.weight_bytes:,} | {best[way]:,.0f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
