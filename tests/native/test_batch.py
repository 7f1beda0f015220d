"""Many sequences in one engine: none may notice the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitwright.errors import BadInput
from bitwright.formats.integer import Integer
from bitwright.runtime import engine
from bitwright.runtime.batch import Batch
from bitwright.runtime.generate import Sampling
from bitwright.runtime.linear import QLinear
from bitwright.solvers.rtn import Rtn

transformers = pytest.importorskip("transformers")

DRAWN = Sampling(temperature=1.0, seed=7)


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        head_dim=16, vocab_size=150, max_position_embeddings=200, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.08 if parameter.dim() == 2 else 0.2)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, old in list(parent.named_children()):
                if isinstance(old, torch.nn.Linear):
                    fmt = Integer(bits_per_code=4, group=32)
                    new = QLinear(fmt, tuple(old.weight.shape))
                    new.fill(Rtn().solve(old.weight.data, fmt, None).planes)
                    setattr(parent, name, new)
    return model


def prompt(length: int) -> list[int]:
    return torch.randint(1, 150, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def alone(model: Any, ids: list[int], limit: int, sampling: Sampling) -> list[int]:
    made = engine.build(model, threads=1)
    return list(made.tokens(ids, limit, temperature=sampling.temperature, seed=sampling.seed))


def test_texts_come_out_as_if_they_were_alone(model: Any) -> None:
    batch = Batch(engine.build(model, threads=2))
    plans = [
        (prompt(n), limit, s) for n, limit, s in [(3, 9, Sampling()), (20, 30, DRAWN), (65, 5, DRAWN), (1, 70, DRAWN)]
    ]
    numbers: dict[int, int] = {}
    said: list[list[int]] = [[] for _ in plans]
    waiting = list(range(len(plans)))
    for turn in range(200):
        if waiting and turn % 3 == 0:  # one joins every third step
            plan = waiting.pop(0)
            numbers[batch.join(*plans[plan])] = plan
        for number, token in batch.step().items():
            said[numbers[number]].append(token)
        if not waiting and not batch.running:
            break
    assert said == [alone(model, *plan) for plan in plans]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 70])
def test_a_step_gives_the_bits_of_single_tokens(isa: str, model: Any, count: int) -> None:
    core = engine.build(model, threads=2).core
    one = engine.build(model, threads=1).core
    sequences = [core.open() for _ in range(count)]
    for i, sequence in enumerate(sequences):
        core.forward(prompt(1 + i % 23), sequence=sequence)
    rows = core.step(sequences, [5 + i for i in range(count)])
    for i in {0, count // 2, count - 1}:
        one.truncate(0)
        one.forward(prompt(1 + i % 23))
        np.testing.assert_array_equal(rows[i], one.forward([5 + i])[0])


def test_a_stop_token_ends_a_text_and_frees_its_cache(model: Any) -> None:
    made = engine.build(model)
    expected = alone(model, prompt(8), 20, Sampling())
    batch, before = Batch(made), made.core.cache_bytes
    batch.join(prompt(8), 20, stop=frozenset({expected[4]}))
    said = []
    while batch.running:
        said += batch.step().values()
    assert said == expected[: expected.index(expected[4])]
    assert made.core.cache_bytes == before


def test_texts_end_where_the_positions_end(model: Any) -> None:
    batch = Batch(engine.build(model))
    batch.join(prompt(195), 100)
    batch.join(prompt(4), 0)
    assert [len(batch.step()) for _ in range(7)] == [1, 1, 1, 1, 1, 0, 0]


def test_what_does_not_fit(model: Any) -> None:
    batch = Batch(engine.build(model))
    core = batch.engine.core
    with pytest.raises(BadInput, match="between 1 and 199"):
        batch.join([], 5)
    for sequences, tokens, message in [
        ([3], [1], "no such"),
        ([0, 0], [1, 2], "one token"),
        ([0], [150], "vocabulary"),
    ]:
        with pytest.raises(ValueError, match=message):
            core.step(sequences, tokens)
    with pytest.raises(ValueError, match="always stays"):
        core.close(0)
    assert core.position == 0
