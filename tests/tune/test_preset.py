"""Presets: two stages that go on where they were, within the bits that were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright.artifact.read import open_artifact
from bitwright.engine.job import Job
from bitwright.engine.run import Result, quantize
from bitwright.errors import BadInput, Refused
from bitwright.learning import Learning
from bitwright.tune.preset import LEARNING, NEAR, job_of, make
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
        make(job, "default", (text,), first, stop)
    assert not job.out.exists()
    with pytest.raises(Refused, match=r"target_bpw was 2\.6, now 2\.9"):
        make(_job(tiny_model, text, job.out, 2.9), "default", (text,), first, _short)
    result = make(job, "default", (text,), first, _short)
    assert len(quantized) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    manifest = open_artifact(job.out).manifest
    assert manifest is not None
    assert manifest.tuning is not None
    assert manifest.tuning.steps == 3
    assert manifest.totals.stored_bits_per_weight <= 2.6
    assert result.errors


def test_many_bits_learn_slowly(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    """The start of 3 bits is near, however the size was asked for."""
    rates: list[float] = []

    def note(tuning: Tuning) -> Tuned:
        rates.append(tuning.learning.rate)
        return _short(tuning)

    few, many = (_job(tiny_model, text, tmp_path / str(bits), bits) for bits in (2.6, 3.0))
    sized = many.model_copy(update={"out": tmp_path / "sized", "bits": None, "target_bytes": 10**9})
    for job in (few, many, sized):
        make(job, "default", (text,), quantize, note)
    assert rates == [LEARNING.rate, NEAR.rate, NEAR.rate]
    assert LEARNING.rate > NEAR.rate


def test_fast_is_quantization_alone(tiny_model: Path, tmp_path: Path) -> None:
    job = Job(model=str(tiny_model), out=tmp_path / "out", bits=2.0)
    assert job_of(job, "fast").out == job.out
    assert job_of(job, "fast").target_bpw == 2.0
    assert job_of(job, "default").out != job.out
    with pytest.raises(BadInput, match="fast, default, best"):
        job_of(job, "splendid")
    with pytest.raises(BadInput, match="how small"):
        job_of(job.model_copy(update={"bits": None}), "fast")
