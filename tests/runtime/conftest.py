"""A packed tiny model."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model rounded to 4 bits."""
    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize

    out = tmp_path_factory.mktemp("packed") / "tiny-4bit"
    quantize(Job(model=str(tiny_model), out=out, recipe="rtn"))
    return out
