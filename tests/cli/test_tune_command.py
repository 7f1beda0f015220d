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
        (("--set", "length=300", "--steps", "1"), "reads at most 256 tokens, not 300: give --set length=256"),
        (("--set", "rate=1e400"), "give a finite number"),
        (("--minutes", "nan"), "--minutes nan"),
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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steps", "2", "--hours", "1"), "--steps and --hours"),
        (("--steps", "0"), "--steps 0"),
        (("--hours", "nan"), "--hours nan"),
        (("--set", "training.length=300"), "reads at most 256 tokens"),
        (("--set", "training.ratio=1"), "Did you mean 'rate'?"),
        (("--set", "training.divergence=0", "--set", "training.hidden=0"), "more than 0"),
        (("--set", "format.order=9"), "give 1 to 4 planes"),
        (("--recipe", "onebits"), "Did you mean 'onebit'?"),
        (("--steps", "2"), "tokens of text"),
    ],
)
def test_wrong_options_of_train_are_one_sentence(
    cli: Cli, tiny_model: Path, text: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    given = options if "--recipe" in options else ("--recipe", "onebit", *options)
    done = cli("train", tiny_model, "-o", tmp_path / "out", "--data", text, *given)
    assert done.code == 2
    assert told in done.err
    assert not list(tmp_path.iterdir())
