"""Presets: two stages that go on where they were, within the bits that were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright.artifact.read import open_artifact
from bitwright.engine.job import Job
from bitwright.engine.run import Result, quantize
from bitwright.errors import BadInput, Refused
from bitwright.learning import Learning
from bitwright.tune.preset import LEARNING, job_of, make
from bitwright.tune.run import Tuned, tune
from bitwright.tune.settings import Tuning


def _short(tuning: Tuning) -> Tuned:
    update = {"minutes": None, "steps": 3, "learning": Learning(batch=2, length=32)}
    return tune(tuning.model_copy(update=update))


def _job(model: Path, text: Path, out: Path, bits: float = 2.6) -> Job:
    return Job(model=str(model), out=out, bits=bits, data=text, tokens=512, length=64, threads=1)


def test_an_interrupted_preset_keeps_its_first_stage(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    quantized: list[Path] = []

    def first(job: Job) -> Result:
        quantized.append(job.out)
        return quantize(job)

    def stop(tuning: Tuning) -> Tuned:
        raise KeyboardInterrupt

    job = _job(tiny_model, text, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        make(job, "default", first, stop)
    assert not job.out.exists()
    with pytest.raises(Refused, match=r"target_bpw was 2\.6, now 2\.9"):
        make(_job(tiny_model, text, job.out, 2.9), "default", first, _short)
    result = make(job, "default", first, _short)
    assert len(quantized) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    manifest = open_artifact(job.out).manifest
    assert manifest is not None
    assert manifest.tuning is not None
    assert manifest.tuning.steps == 3
    assert manifest.totals.stored_bits_per_weight <= 2.6
    assert result.errors


def test_several_texts_are_calibrated_on_and_learned_from(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    job = _job(tiny_model, text, tmp_path / "out").model_copy(update={"data": (text, other)})
    make(job, "default", quantize, _short)
    manifest = open_artifact(job.out).manifest
    assert manifest is not None
    assert manifest.tuning is not None
    assert manifest.calibration is not None
    assert manifest.calibration.data == manifest.tuning.data.data == f"{text.name} + other.txt"


def test_tokens_that_presets_calibrate_on(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(job: Job) -> Result:
        seen.append(job.calibration_tokens)
        raise KeyboardInterrupt

    none = Job(model=str(tiny_model), out=tmp_path / "out", bits=2.6, length=64)
    given = none.model_copy(update={"data": (text,)})
    assert [job_of(none, q).tokens for q in ("fast", "default")] == [20_480, 20_480]
    assert [job_of(given, q).tokens for q in ("fast", "default")] == [20_480, 61_440]
    assert job_of(given.model_copy(update={"tokens": 640}), "default").tokens == 640
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:8000])
    with pytest.raises(KeyboardInterrupt):
        make(given.model_copy(update={"data": (short,)}), "default", stop)
    assert 3000 < seen[0] <= 4000  # half of the text, the other half is learned from
    with pytest.raises(BadInput, match="fewer --tokens"):
        make(given.model_copy(update={"data": (short,), "tokens": 7000}), "default", stop)


def test_presets_learn_as_they_say(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    seen: list[Learning] = []

    def note(tuning: Tuning) -> Tuned:
        seen.append(tuning.learning)
        return _short(tuning)

    make(_job(tiny_model, text, tmp_path / "out"), "default", quantize, note)
    assert seen == [LEARNING]


def test_fast_is_quantization_alone(tiny_model: Path, tmp_path: Path) -> None:
    job = Job(model=str(tiny_model), out=tmp_path / "out", bits=2.0)
    assert job_of(job, "fast").out == job.out
    assert job_of(job, "fast").target_bpw == 2.0
    assert job_of(job, "default").out != job.out
    with pytest.raises(BadInput, match="fast, default, best"):
        job_of(job, "splendid")
    with pytest.raises(BadInput, match="how small"):
        job_of(job.model_copy(update={"bits": None}), "fast")
