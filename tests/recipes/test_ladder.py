"""What binarization costs a model that was really trained, recipe by recipe, and what training gives back: minutes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.calibrate import tokens
from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.models.source import open_source
from bitwright.runtime.load import load, load_float
from bitwright.tune.run import tune
from bitwright.tune.settings import Tuning, of_recipe

pytestmark = pytest.mark.slow
# From the best to the worst, at their natural settings: 5.4, 2.9, 2.6, 3.0 and 2.5 stored bits in matrices this small.
LADDER = ("pb-llm", "arb-llm", "db-llm", "bi-llm", "st-bllm")
ONE_BIT = ("ptq161", "onebit", "binary-mos")
TRAINED = {"db-llm": 0.7, "onebit": 1.2, "binary-mos": 1.2}  # nats a token that 100 short steps must give back

Loss = Callable[[Any], float]


@pytest.fixture(scope="module")
def loss(stories260k: Path, stories: tuple[Path, Path]) -> Loss:
    """Of the next token on stories that no recipe saw, nats a token."""
    tokenizer = open_source(str(stories260k)).tokenizer()
    held = tokens.windows(tokenizer, tokens.read_text(stories[1]), 256)[:24]

    @torch.no_grad()
    def measure(model: Any) -> float:
        told = model(held).logits[:, :-1].float().log_softmax(-1)
        return float(-told.gather(2, held[:, 1:, None]).mean())

    return measure


@pytest.fixture(scope="module")
def packed_stories(
    stories260k: Path, stories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ladder")
    for recipe in (*LADDER, *ONE_BIT):
        job = Job(model=str(stories260k), out=folder / recipe, recipe=recipe, data=stories[0], length=256, threads=1)
        quantize(job)
    return {recipe: folder / recipe for recipe in (*LADDER, *ONE_BIT)}


def test_the_float_model_is_what_its_author_trained(stories260k: Path, loss: Loss) -> None:
    assert 1.2 < loss(load_float(str(stories260k))) < 1.5  # its author reports 1.297 behind a first token


def test_the_order_of_recipes_without_training(stories260k: Path, packed_stories: dict[str, Path], loss: Loss) -> None:
    found = {recipe: loss(load(path)) for recipe, path in packed_stories.items()}
    ladder = [loss(load_float(str(stories260k))), *(found[recipe] for recipe in LADDER)]
    assert ladder == sorted(ladder), found
    assert all(found[recipe] < math.log(512) for recipe in found), found
    assert found["ptq161"] < found["onebit"], found
    assert found["binary-mos"] == found["onebit"]  # experts part in training only


@pytest.mark.parametrize("recipe", TRAINED)
def test_training_gives_back(
    recipe: str, packed_stories: dict[str, Path], stories: tuple[Path, Path], loss: Loss, tmp_path: Path
) -> None:
    out, learning = tmp_path / "out", replace(of_recipe(recipe), batch=4, length=128)
    tune(Tuning(artifact=packed_stories[recipe], out=out, data=(stories[0],), steps=100, learning=learning, threads=1))
    assert loss(load(out)) < loss(load(packed_stories[recipe])) - TRAINED[recipe]
