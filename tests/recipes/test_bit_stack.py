"""One file at many sizes, on a model that was really trained."""

from __future__ import annotations

from itertools import pairwise
from math import exp
from pathlib import Path

import pytest
import torch
from torch import nn


def perplexity(model: nn.Module, rows: torch.Tensor) -> float:
    with torch.inference_mode():
        logs = [model(row[None]).logits[0, :-1].float().log_softmax(-1) for row in rows]
    found = [-log.gather(1, row[1:, None]).double().mean() for log, row in zip(logs, rows, strict=True)]
    return exp(float(torch.stack(found).mean()))


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
