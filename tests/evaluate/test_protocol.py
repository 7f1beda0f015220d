import gzip
import json
from hashlib import sha256
from pathlib import Path

import pytest

from bitwright.errors import BadInput
from bitwright.evaluate.protocol import Text, load_text, prepare, windows


def test_line_ends_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    raw = "one\r\ntwo\rthree\n — é\n".encode()
    (tmp_path / "a.raw").write_bytes(raw)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(raw))
    for name in ("a.raw", "a.txt.gz"):
        text = load_text(tmp_path / name)
        assert text.content.encode() == raw
        assert (text.name, text.sha256) == (name, sha256(raw).hexdigest())


def test_documents_are_joined_by_an_empty_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "a\nb"}) + "\n" + json.dumps("c") + "\n")
    assert load_text(tmp_path / "d.jsonl").content == "a\nb\n\nc"


def test_the_default_text_needs_no_file() -> None:
    first, again = load_text(), load_text()
    assert first == again
    assert len(first.content) > 300_000  # it grows with every Python


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.txt", None),
        ("latin.txt", b"\xe9\xff"),
        ("cut.txt.gz", gzip.compress(b"hello" * 100)[:20]),
        ("mangled.txt.gz", b"plain"),
        ("broken.jsonl", b"{"),
        ("wrong.jsonl", b"[1]"),
    ],
    ids=["missing", "latin", "cut", "mangled", "broken", "wrong"],  # compressed bytes carry the time of day
)
def test_a_text_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name.split(".")[0]):
        load_text(tmp_path / name)


def test_windows_do_not_overlap_and_leave_the_rest(tokenizer) -> None:
    assert windows(tokenizer, "abcdefghij", 3).tolist() == [list(b"abc"), list(b"def"), list(b"ghi")]
    _, first = prepare(tokenizer, Text("t", "abcdefghij"), window=3, limit=2)
    assert first.tolist() == [list(b"abc"), list(b"def")]


def test_the_protocol_says_what_was_measured(tokenizer) -> None:
    text = Text("tale", "a bc def ghij klmno pqrstu")
    protocol, chosen = prepare(tokenizer, text, window=8, limit=2)
    assert chosen.shape == (2, 8)
    assert (protocol.windows, protocol.available, protocol.window) == (2, 3, 8)
    assert protocol.words == len(["bc", "def"]) + len(["hij", "klm"])
    told = protocol.to_json()
    assert (told["stride"], told["bos"], told["version"]) == (8, "none", 1)
    assert "2 of 3 windows of 8 tokens" in str(protocol)
    other, _ = prepare(tokenizer, text, window=8, limit=3)
    assert other.tokens_sha256 != protocol.tokens_sha256


def test_a_short_context_makes_short_windows_and_the_protocol_says_so(tokenizer) -> None:
    protocol, chosen = prepare(tokenizer, Text("t", "x" * 100), window=64, max_positions=32)
    assert protocol.window == protocol.to_json()["stride"] == chosen.shape[1] == 32
    assert prepare(tokenizer, Text("t", "x" * 5000), max_positions=8192)[0].window == 2048


def test_a_text_shorter_than_one_window_is_refused_with_both_numbers(tokenizer) -> None:
    with pytest.raises(BadInput, match=r"has 5 tokens, but one window needs 2048"):
        prepare(tokenizer, Text("t", "hello"))
    with pytest.raises(BadInput, match="0 windows"):
        prepare(tokenizer, Text("t", "hello" * 1000), limit=0)
