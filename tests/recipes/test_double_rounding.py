"""Nested integers as an elastic file: bits by layer at every budget, and training's place taken by compensation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitwright.artifact.read import open_artifact
from bitwright.calibrate.tokens import builtin_text
from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.engine.settings import choose
from bitwright.engine.verify import fixed_logits
from bitwright.errors import Refused, TooFewBits
from bitwright.formats.nested import Nested
from bitwright.recipes.double_rounding import RECIPE
from bitwright.runtime.elastic import ElasticModel
from bitwright.runtime.load import load

SHAPES = [(64, 64), (96, 64)]


def test_one_file_is_a_model_of_every_width(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(builtin_text()[1][:20_000])
    out = tmp_path / "out"
    quantize(
        Job(model=str(tiny_model), out=out, recipe="double-rounding", data=tmp_path / "text.txt", tokens=256, length=64)
    )
    model = ElasticModel(out)
    whole, sizes = model.bytes, []
    logits = fixed_logits(model.model, 257)
    assert torch.equal(logits, fixed_logits(load(out), 257))
    for budget in (model.prefix.smallest, (model.prefix.smallest + whole) // 2, whole):
        model.resize(budget)
        widths = {fmt.bits_per_code for fmt in model.prefix.part.formats if isinstance(fmt, Nested)}
        sizes.append((model.bytes, min(widths), max(widths)))
        assert model.generator().module(torch.arange(12)[None]).logits.isfinite().all()
    assert sizes[0][1:] == (2, 2)
    assert sizes[1][1] < sizes[1][2]  # layers have widths of their own
    assert sizes[2] == (whole, 8, 8)
    curve = open_artifact(out).manifest.elastic.curve  # type: ignore[union-attr]
    assert curve[-1].kl < curve[len(curve) // 2].kl < curve[0].kl


def test_bits_say_how_far_the_file_goes() -> None:
    found = choose("double-rounding", {}, 4.5, SHAPES)[0].format
    assert found == Nested((2, 1, 1))
    with pytest.raises(TooFewBits):
        choose("double-rounding", {}, 2.0, SHAPES)
    with pytest.raises(Refused, match="at most"):
        choose("double-rounding", {}, 9.0, SHAPES)
    other = choose("double-rounding", {"format.blocks_of_bits": "[4,4]"}, None, SHAPES)[0]
    assert isinstance(other.format, Nested)
    assert other.format.blocks == 2
    assert RECIPE.format == Nested()
