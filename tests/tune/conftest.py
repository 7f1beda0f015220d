"""A packed tiny model and a short way to tune it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bitwright.calibrate.tokens import builtin_text

    path = tmp_path_factory.mktemp("text") / "tuning.txt"
    path.write_text(builtin_text()[1][40_000:52_000])
    return path


@pytest.fixture(scope="session")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at 2 bits."""
    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize

    out = tmp_path_factory.mktemp("packed") / "tiny-2bit"
    quantize(Job(model=str(tiny_model), out=out, recipe="rtn", settings={"format.bits_per_code": "2"}))
    return out


@pytest.fixture
def run(packed: Path, text: Path) -> Callable[..., Any]:
    """run(out, steps=..., ...) -> Tuned, on short sequences."""

    def go(out: Path, told: Any = lambda step, loss: None, **fields: Any) -> Any:
        from bitwright.learning import Learning
        from bitwright.tune.run import tune
        from bitwright.tune.settings import Tuning

        settings = {"steps": 6, "learning": Learning(batch=2, length=32), "artifact": packed, "data": (text,)} | fields
        return tune(Tuning(out=out, **settings), told=told)

    return go
