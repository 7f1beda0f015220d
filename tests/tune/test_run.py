"""A whole tuning: nearer to the float model in the same bytes, resumable, the same for any number of threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.artifact.read import open_artifact
from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.errors import BadField, BadInput, Refused
from bitwright.learning import Learning
from bitwright.runtime.load import load
from bitwright.tune import course

Run = Callable[..., Any]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_comes_nearer_to_the_float_model_in_the_same_bytes(packed: Path, tmp_path: Path, run: Run) -> None:
    learning = Learning(batch=2, length=32, rate=0.01, parameter_rate=0.005)
    result = run(tmp_path / "out", steps=30, learning=learning)
    told = result.manifest.tuning
    assert told.after < 0.9 * told.before
    assert told.tokens == 30 * 2 * 32
    before, after = open_artifact(packed), open_artifact(tmp_path / "out")
    assert after.quantization == before.quantization
    assert after.file_bytes() == before.file_bytes()
    assert after.manifest is not None
    assert after.manifest.verification == result.manifest.verification
    assert not (tmp_path / "out.journal").exists()


def test_bytes_do_not_depend_on_threads(tmp_path: Path, run: Run) -> None:
    for threads in (1, 3):
        run(tmp_path / f"t{threads}", threads=threads)
    assert digest(tmp_path / "t1") == digest(tmp_path / "t3")


@pytest.mark.parametrize("every", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_tuning_goes_on_to_the_same_bytes(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(course, "SAVE_EVERY", 0.0)
    learning = Learning(batch=2, length=32, rate=0.05, encode_every=every)
    run(tmp_path / "whole", learning=learning)
    steps: list[int] = []

    def stop(step: int, loss: float) -> None:
        steps.append(step)
        if steps.count(step) == 1 and step in (2, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", stop, learning=learning)
    run(tmp_path / "parts", stop, learning=learning)
    assert steps == [0, 1, 2, 2, 3, 4, 4, 5]
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_minutes_become_steps_once(tmp_path: Path, run: Run) -> None:
    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop, steps=None, minutes=0.002)
    noted = (tmp_path / "out.journal" / "plan.json").read_text()
    result = run(tmp_path / "out", steps=None, minutes=0.002)
    assert f'"steps": {result.manifest.tuning.steps}' in noted


def test_refusals(packed: Path, tmp_path: Path, run: Run) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words " * 10)
    with pytest.raises(BadInput, match="more text"):
        run(tmp_path / "out", data=(short,))
    with pytest.raises(Refused, match="already exists"):
        run(packed)
    with pytest.raises(BadField, match=r"sclaes.*scale"):
        run(tmp_path / "out", learning=Learning(batch=2, length=32, frozen=("sclaes",)))
    assert not list(tmp_path.glob("out*.journal"))  # nothing that would refuse the next try


def test_a_tied_embedding_in_floats_is_the_head_too(tiny_model: Path, tmp_path: Path, run: Run) -> None:
    quantize(Job(model=str(tiny_model), out=tmp_path / "floats", recipe="rtn", settings={"embedding": "null"}))
    assert "lm_head" not in dict(open_artifact(tmp_path / "floats").quantization.tied)
    model = load(tmp_path / "floats")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    result = run(tmp_path / "tuned", artifact=tmp_path / "floats")
    assert result.manifest.tuning.after < result.manifest.tuning.before
