"""One file at many sizes, on a model that was really trained."""

from __future__ import annotations

import copy
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.formats.stack import Stack
from bitwright.linalg import Hessian
from bitwright.protocols import QTensor
from bitwright.recipes._bits import stored_bits
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.successive import Successive


def perplexity(model: nn.Module, rows: torch.Tensor) -> float:
    with torch.inference_mode():
        logs = [model(row[None]).logits[0, :-1].float().log_softmax(-1) for row in rows]
    found = [-log.gather(1, row[1:, None]).double().mean() for log, row in zip(logs, rows, strict=True)]
    return exp(float(torch.stack(found).mean()))


Babyllama = tuple[Any, torch.Tensor, torch.Tensor]


def curve(babyllama: Babyllama, rank: int, blocks: int) -> list[tuple[float, float]]:
    """(stored bits, nats a character on other stories) of the float model with its linears as so many blocks."""
    model, learn, held = babyllama
    model = copy.deepcopy(model)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in name}
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _, x, __, name=name: inputs.__setitem__(name, x[0].flatten(0, 1)))
        for name, m in linears.items()
    ]
    with torch.inference_mode():
        model(learn)
    for hook in hooks:
        hook.remove()
    solved = {}
    for name, linear in linears.items():
        x = inputs[name].clone()
        hessian = Hessian(2 / len(x) * x.t() @ x, len(x))
        solved[name] = Successive(each=Gptq()).solve(linear.weight.data, Stack(blocks, rank=rank), hessian)
    points = []
    for count in range(2, blocks + 1):
        for name, q in solved.items():
            fmt = Stack(count, rank=rank)
            own = {role: q.planes[role] for role in fmt.planes(q.shape)}
            linears[name].weight.data = QTensor(fmt, q.shape, own).dequantize()
        bits = stored_bits(Stack(count, rank=rank), [q.shape for q in solved.values()])
        points.append((bits, log(perplexity(model, held))))
    return points


@pytest.mark.slow
def test_one_vector_a_block_buys_more_than_two(babyllama: Babyllama) -> None:
    """At equal stored bits, on straight lines between numbers of blocks, in matrices as small as these."""
    one, two = curve(babyllama, 1, 4), curve(babyllama, 2, 3)
    for bits, nats in two:
        (low, before), (high, after) = next(pair for pair in pairwise(one) if pair[0][0] <= bits <= pair[1][0])
        assert before + (after - before) * (bits - low) / (high - low) < nats


@pytest.mark.slow
def test_perplexity_falls_with_the_budget(stories260k: Path, stories: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize
    from bitwright.runtime.elastic import ElasticModel
    from bitwright.runtime.load import load_float

    learn, held = stories
    quantize(Job(model=str(stories260k), out=tmp_path / "out", recipe="bit-stack", data=learn, tokens=8192))
    ids = AutoTokenizer.from_pretrained(stories260k)(held.read_text(), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[:4000]).view(8, 500)
    model = ElasticModel(tmp_path / "out")
    first, last = model.prefix.smallest, model.bytes
    found = []
    for i in range(9):
        model.resize(first + (last - first) * i // 8)
        found.append(perplexity(model.generator().module, rows))
    assert all(after < before for before, after in pairwise(found))
    assert found[0] > 50  # one bit a weight ruins so small a model
    assert found[-1] < 1.25 * perplexity(load_float(str(stories260k)), rows)
