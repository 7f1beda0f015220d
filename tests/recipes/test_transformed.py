"""Recipes that transform or reconstruct blocks, on a small model that was really trained, against plain rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.models.source import open_source
from bitwright.runtime.load import load, load_float

BITS = {"format.bits_per_code": "3", "format.group": "64"}


@pytest.fixture(scope="module")
def divergences(
    stories260k: Path, stories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """KL divergence from the float model on other stories; whether artifacts load afresh is tested elsewhere."""
    learn, held = stories
    folder = tmp_path_factory.mktemp("artifacts")
    ids = open_source(str(stories260k)).tokenizer()(held.read_text(encoding="utf-8"))["input_ids"]
    windows = torch.tensor(ids[: 4 * 256]).view(4, 256)
    with torch.inference_mode():
        expected = load_float(str(stories260k))(windows).logits.log_softmax(-1)

    def measured(name: str) -> float:
        settings = BITS | ({"refiner.steps": "20"} if name in ("autoround", "omniquant") else {})
        text = {"data": learn, "tokens": 2048, "length": 128}
        job = Job(model=str(stories260k), out=folder / name, recipe=name, settings=settings, **text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bitwright.engine.run.verified", lambda folder, contents, tensor, manifest: manifest)
            quantize(job)
        with torch.inference_mode():
            found = load(folder / name)(windows).logits.log_softmax(-1)
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    return {name: measured(name) for name in ("rtn", "awq", "autoround", "omniquant")}


@pytest.mark.parametrize(("name", "share"), [("awq", 0.9), ("autoround", 0.6), ("omniquant", 0.85)])
def test_less_is_lost_than_by_rounding(divergences: dict[str, float], name: str, share: float) -> None:
    assert divergences[name] < share * divergences["rtn"]
