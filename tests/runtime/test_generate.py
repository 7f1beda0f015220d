from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import BadField, BadInput, Refused
from bitwright.runtime.generate import Sampling, chat_ids, generator, open_generator, stream
from bitwright.runtime.generate import torch_tokens as tokens
from bitwright.runtime.load import load_float

PROMPT = [10, 20, 30]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_float(str(tiny_model))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_greedy_is_what_transformers_generates(model: Any) -> None:
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(PROMPT) :]
    assert list(tokens(model, PROMPT, 20)) == expected.tolist()


def test_ends_before_a_stop_token(model: Any) -> None:
    every = list(tokens(model, PROMPT, 20))
    at = every.index(every[7])
    assert list(tokens(model, PROMPT, 20, stop=frozenset({every[7]}))) == every[:at]


def test_ends_where_the_positions_end(model: Any) -> None:
    ids = [i % 250 for i in range(250)]
    assert len(list(tokens(model, ids, 100))) == 256 - 250


@pytest.mark.parametrize("count", [0, 256])
def test_prompt_that_does_not_fit(model: Any, count: int) -> None:
    with pytest.raises(BadInput, match=f"{count} tokens"):
        next(tokens(model, [1] * count, 1))


def test_draws_repeat_by_seed(model: Any) -> None:
    def drawn(seed: int) -> list[int]:
        return list(tokens(model, PROMPT, 30, Sampling(temperature=1.5, seed=seed)))

    assert drawn(1) == drawn(1) != drawn(2)


def test_smallest_nucleus_is_the_most_probable_token(model: Any) -> None:
    assert list(tokens(model, PROMPT, 20, Sampling(1.0, top_p=1e-6))) == list(tokens(model, PROMPT, 20))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_impossible_sampling(fields: dict[str, float]) -> None:
    with pytest.raises(BadField, match=next(iter(fields))):
        Sampling(**fields)  # type: ignore[arg-type]


def test_pieces_join_to_the_text(model: Any, tokenizer: Any) -> None:
    ids = list(tokens(model, PROMPT, 40, stop=generator(model).ends | {tokenizer.eos_token_id}))
    pieces = list(stream(generator(model), tokenizer, PROMPT, max_tokens=40))
    assert len(pieces) == len(ids) + 1
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_character_of_several_tokens_comes_whole(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer("né 語!")["input_ids"]
    monkeypatch.setattr("bitwright.runtime.generate.torch_tokens", lambda *_: iter(ids))
    pieces = list(stream(generator(model), tokenizer, PROMPT, max_tokens=40))
    assert [piece for piece in pieces if piece] == ["n", "é", " ", "語", "!"]


def test_conversation_goes_through_the_template(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.decode(chat_ids(tokenizer, messages)) == "user: Hi\nassistant: Ho\nassistant:"
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(BadInput, match="chat template"):
        chat_ids(bare, messages)


def test_packed_models_generate_in_the_compiled_engine(packed: Path) -> None:
    from bitwright.artifact.read import open_artifact
    from bitwright.runtime import native
    from bitwright.runtime.engine import Engine
    from bitwright.runtime.load import load

    if not native.available()[0]:
        pytest.skip(native.available()[1])
    speaker = open_generator(open_artifact(packed), "int8")
    assert isinstance(speaker.runs, Engine)
    read_off_modules = generator(load(packed))
    assert speaker.ends == read_off_modules.ends
    ids = torch.tensor([PROMPT * 20])
    assert torch.equal(speaker.module(ids).logits, read_off_modules.module(ids).logits)
    assert speaker.why.startswith("compiled engine")
    drawn = list(speaker.tokens(PROMPT, 30, Sampling(1.0, seed=3)))
    assert drawn == list(speaker.tokens(PROMPT, 30, Sampling(1.0, seed=3)))
    assert len(drawn) == 30


def test_the_engine_is_refused_where_it_cannot_run(model: Any) -> None:
    assert generator(model).runs is model
    with pytest.raises(Refused, match="not packed"):
        generator(model, "native")
