"""Recipes that spread bits over tensors, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitwright.engine.job import Job
from bitwright.engine.run import prepare
from bitwright.registry import load


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bitwright.calibrate.tokens import builtin_text

    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(builtin_text()[1][:20_000])
    return path


def plan(model: Path, text: Path, **fields: Any) -> Any:
    return prepare(Job(model=str(model), out=Path("none"), data=text, tokens=256, length=64, **fields))[2]


@pytest.mark.parametrize(("recipe", "score"), [("layerwise", None), ("layerwise", "zd"), ("baq", None), ("hawq", None)])
def test_formats_are_of_the_menu_and_the_file_fits(
    tiny_model: Path, text: Path, recipe: str, score: str | None
) -> None:
    found = plan(tiny_model, text, recipe=recipe, target_bytes=60_000, score=score)
    menu = load("recipes", recipe).MENU
    assert found.file_bytes <= 60_000
    blocks = {name: fmt for name, fmt in found.formats.items() if name not in found.contents.parts}
    assert set(blocks.values()) <= set(menu.formats)
    if recipe == "layerwise":
        for index in range(2):
            assert len({fmt for name, fmt in blocks.items() if f".layers.{index}." in name}) == 1
