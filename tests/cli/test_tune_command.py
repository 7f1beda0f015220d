"""`bitwright tune`: what it prints, what it refuses, and that its text is kept apart from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

FAST = ("--set", "length=32", "--set", "batch=2")


def test_tells_what_it_did_and_its_text_is_refused_for_measuring(
    cli: Cli, packed: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = cli("tune", packed, "-o", out, "--data", text, "--steps", "2", *FAST, "--json")
    assert done.code == 0
    assert done.json["tuning"]["steps"] == 2
    assert done.json["tuning"]["data"]["data"] == text.name
    measured = cli("evaluate", out, "--text", text)
    assert measured.code == 2
    assert "was tuned on" in measured.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steps", "2", "--minutes", "1"), "steps or minutes"),
        (("--steps", "0"), "--steps 0"),
        (("--set", "ratio=1"), "Did you mean 'rate'?"),
        (("--set", "batch=0"), "give 1 or more"),
        (("--against", "gemma3-271m"), "gemma3-270m"),
    ],
)
def test_wrong_options_are_one_sentence(
    cli: Cli, packed: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = cli("tune", packed, "-o", tmp_path / "out", *options)
    assert done.code == 2
    assert told in done.err
    assert not (tmp_path / "out").exists()
