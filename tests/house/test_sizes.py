"""Files stay readable in one sitting, and are named after what they do."""

from __future__ import annotations

from pathlib import Path

SOURCES = sorted((Path(__file__).parents[2] / "src" / "bitwright").rglob("*.py"))


def test_no_file_grows_without_end() -> None:
    assert SOURCES
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: n for path, n in lengths.items() if n > 400} == {}


def test_no_file_is_called_after_nothing() -> None:
    assert not {path.stem for path in SOURCES} & {"utils", "helpers", "common", "misc", "util", "helper"}
