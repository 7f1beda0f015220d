"""`--budget`: a part of one file generates, talks, is measured and described."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bitwright.artifact.prefix import Prefix
from bitwright.engine.job import Job

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


@pytest.fixture(scope="module")
def elastic(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in two blocks a weight; read only."""
    from bitwright.engine.run import quantize

    folder = tmp_path_factory.mktemp("elastic")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    settings = {"solver.each": '{"kind": "rtn"}', "format.blocks": "2"}
    job = Job(
        model=str(tiny_model), out=folder / "out", recipe="bit-stack", settings=settings, data=folder / "text.txt",
        tokens=128, length=64, threads=1,
    )  # fmt: skip
    quantize(job)
    return job.out


def kilobytes(elastic: Path, steps: int) -> str:
    prefix = Prefix(elastic)
    return f"{(prefix.steps[steps - 1].stop if steps else prefix.smallest) / 1000}kB"


def test_info_tells_what_is_loaded_and_the_curve(cli: Cli, elastic: Path) -> None:
    told = cli("info", elastic, "--budget", kilobytes(elastic, 5), "--json").json
    assert told["loaded"]["bytes"] == Prefix(elastic).steps[4].stop
    assert told["loaded"]["stored_bits_per_weight"] < told["stored_bits_per_weight"]
    assert len(told["beginnings"]["curve"]) == 12
    shown = cli("info", elastic, "--budget", kilobytes(elastic, 5)).out
    assert "of these loaded" in shown
    assert "KL divergence a token" in shown


def test_evaluate_measures_the_part(cli: Cli, elastic: Path, text: Path) -> None:
    rows = [
        cli("evaluate", elastic, "--budget", kilobytes(elastic, steps), "--text", text, "--windows", 1, "--json").json
        for steps in (0, 14)
    ]
    assert rows[0]["file_bytes"] == Prefix(elastic).smallest
    assert rows[0]["kl_mean"] > rows[1]["kl_mean"]
    whole = cli("evaluate", elastic, "--text", text, "--windows", 1, "--json").json
    assert all(rows[1][key] == whole[key] for key in ("perplexity", "kl_mean", "file_bytes", "stored_bits_per_weight"))


def test_generate_and_resize_in_a_chat(cli: Cli, elastic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = kilobytes(elastic, 3)
    told = cli("generate", elastic, "--budget", size, "--prompt", "the", "--max-tokens", 3, "--json").json
    assert told["tokens"] <= 3
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"hello\n/budget {kilobytes(elastic, 9)}\nhello\n/budget 1kB\n/quit\n")
    )
    talk = cli("chat", elastic, "--budget", size, "--max-tokens", 2, "--json")
    assert len(talk.json["answers"]) == 2
    assert "too small" in talk.err


@pytest.mark.parametrize(
    ("budget", "told"), [("1kB", "too small"), ("1GB", "more than"), ("much", "give a size"), ("nan", "give a size")]
)
def test_budgets_that_cannot_be(cli: Cli, elastic: Path, budget: str, told: str) -> None:
    for command in (("generate", elastic, "--prompt", "a"), ("info", elastic), ("evaluate", elastic)):
        found = cli(*command, "--budget", budget)
        assert found.code == 2
        assert told in found.err
        assert found.err.count("\n") == 1
        assert "Traceback" not in found.err


def test_models_without_parts(cli: Cli, packed: Path, tiny_model: Path) -> None:
    for path, told in ((packed, "no weights in blocks"), (tiny_model, "used whole")):
        found = cli("generate", path, "--prompt", "a", "--budget", "1MB")
        assert found.code == 2
        assert told in found.err
