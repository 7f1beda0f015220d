"""`train`: from the float model to a trained artifact in one go that survives interruptions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.artifact.read import Artifact, open_artifact
from bitwright.engine import run as engine
from bitwright.engine.job import Job
from bitwright.engine.run import Result, quantize
from bitwright.errors import BadInput, WorkFailed
from bitwright.learning import Learning
from bitwright.runtime.generate import open_generator
from bitwright.runtime.linear import set_activations
from bitwright.runtime.load import load
from bitwright.tune import course
from bitwright.tune import run as running
from bitwright.tune.run import Tuned, tune
from bitwright.tune.settings import Tuning, learning, of_recipe
from bitwright.tune.stages import start_of, train
from bitwright.tune.student import Student

SHORT = {"batch": "2", "length": "32"}


def jobs(model: Path, text: Path, out: Path, recipe: str, steps: int = 4, **more: str) -> tuple[Job, Tuning]:
    job = Job(model=str(model), out=out, recipe=recipe, data=text, tokens=512, length=64, threads=1)
    how = learning(SHORT | more, of_recipe(recipe))
    return job, Tuning(artifact=start_of(out), out=out, data=(text,), steps=steps, learning=how, threads=1)


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fresh processes that compare logits: other tests do that."""
    for module in (running, engine):
        monkeypatch.setattr(module, "verified", lambda folder, contents, tensor, manifest: manifest)


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("recipe", ["onebit", "binary-mos", "db-llm", "pb-llm"])
def test_losses_fall(tiny_model: Path, text: Path, tmp_path: Path, recipe: str) -> None:
    losses: list[float] = []
    job, tuning = jobs(tiny_model, text, tmp_path / "out", recipe, 24, rate="0.02", parameter_rate="0.005")

    def then(tuning: Tuning) -> Tuned:
        return tune(tuning, told=lambda step, loss: losses.append(loss))

    told = train(job, tuning, then=then).manifest.tuning
    assert told is not None
    assert told.after < told.before or sum(losses[-8:]) < 0.99 * sum(losses[:8])
    assert told.learning["frozen"] == list(of_recipe(recipe).frozen)
    assert open_artifact(tmp_path / "out").quantization.weights
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.usefixtures("unverified")
def test_killed_and_repeated_gives_the_same_bytes(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "SAVE_EVERY", 0.0)
    quantized: list[Job] = []

    def first(job: Job) -> Result:
        quantized.append(job)
        return quantize(job)

    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    for recipe in ("onebit", "pb-llm"):
        train(*jobs(tiny_model, text, tmp_path / f"{recipe}-whole", recipe))
        broken: Any = jobs(tiny_model, text, tmp_path / f"{recipe}-parts", recipe)
        with pytest.raises(KeyboardInterrupt):
            train(*broken, first, lambda tuning: tune(tuning, told=stop))
        train(*broken, first)
        whole, parts = (
            hashlib.sha256((tmp_path / f"{recipe}-{kind}" / "model.safetensors").read_bytes()).digest()
            for kind in ("whole", "parts")
        )
        assert whole == parts
    assert [job.recipe for job in quantized] == ["onebit", "pb-llm"]


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("recipe", ["onebit", "binary-mos"])
def test_what_was_trained_is_what_was_written(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    trained: list[Student] = []
    check = Student.same

    def same(self: Student, artifact: Artifact) -> None:
        trained.append(self)
        check(self, artifact)

    monkeypatch.setattr(Student, "same", same)
    monkeypatch.setattr(running, "product_type", lambda: torch.float32)
    train(*jobs(tiny_model, text, tmp_path / "out", recipe, rate="0.05"))
    (student,) = trained
    packed = load(tmp_path / "out")
    set_activations(packed, "float")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(packed(ids).logits, student.model(ids).logits, atol=1e-6)
        next(iter(student.parameters.values()))[-1][0, 0] += 1e-3
    with pytest.raises(WorkFailed, match="other values than it was trained with"):
        student.same(open_artifact(tmp_path / "out"))
    speaker = open_generator(open_artifact(tmp_path / "out"), "int8")
    assert ("mixes no scales" in speaker.why) == (recipe == "binary-mos")


def test_too_little_text_is_said_before_any_work(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    job, tuning = jobs(tiny_model, text, tmp_path / "out", "onebit")
    with pytest.raises(BadInput, match=r"12,032 tokens of text, 20,\d+ are needed"):
        train(job.model_copy(update={"tokens": 20_000}), tuning)
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_training_learns_as_tune_does() -> None:
    assert of_recipe("gptq") == Learning()
    assert of_recipe("onebit").hidden > 0
    assert learning({"hidden": "0"}, of_recipe("onebit")).hidden == 0
