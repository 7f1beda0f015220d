"""A calibration text and a short way to run a job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bitwright.calibrate.tokens import builtin_text

    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(builtin_text()[1][:40_000])
    return path


@pytest.fixture
def run(text: Path) -> Callable[..., Any]:
    """run(model, out, recipe=..., ...) -> Result, on a small calibration set."""

    def go(model: Path, out: Path, progress: Any = lambda what, done, of: None, **fields: Any) -> Any:
        from bitwright.engine.job import Job
        from bitwright.engine.run import quantize

        settings = {"data": text, "tokens": 512, "length": 64} | fields
        return quantize(Job(model=str(model), out=out, **settings), progress)

    return go


@pytest.fixture
def sha256() -> Callable[[Path], str]:
    """Of all safetensors and the config of an artifact."""

    def digest(folder: Path) -> str:
        files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    return digest
