"""Tables are kept, resumed, and read by every score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import UnknownName
from bitwright.formats.integer import Integer
from bitwright.formats.rotated import Rotated
from bitwright.formats.trellis import Trellis
from bitwright.models.skeleton import skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.sensitivity.measure import Bench
from bitwright.sensitivity.scores import EXPERTS, SCORES, losses
from bitwright.sensitivity.statistics import zd
from bitwright.sensitivity.table import key
from bitwright.solvers.gptq import Gptq
from bitwright.spec import label

FORMATS = (Integer(2, 32), Integer(4, 32))


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Callable[..., Bench]:
    source = open_source(str(tiny_model))
    ids = torch.randint(0, 256, (3, 32), generator=torch.Generator().manual_seed(0))

    def make(progress: Any = lambda what, done, of: None) -> Bench:
        return Bench(source, infer(skeleton(source.config)), ids, Gptq(), Gptq(), tmp_path, map, progress)

    return make


def test_an_interrupted_table_goes_on_and_a_finished_one_costs_nothing(bench: Callable[..., Bench]) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "trying formats" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(interrupt).table(FORMATS, FORMATS[1:], "text")
    steps: list[str] = []
    table = bench(lambda what, done, of: steps.append(what)).table(FORMATS, FORMATS[1:], "text")
    assert steps == ["trying formats", "trying formats of the embedding"]
    steps.clear()
    again = bench(lambda what, done, of: steps.append(what)).table(FORMATS, FORMATS[1:], "text")
    assert steps == []
    assert again == table
    more = bench(lambda what, done, of: steps.append(what)).table((*FORMATS, Integer(3, 32)), (), "text")
    assert set(steps) == {"trying formats"}
    assert len(more.tensors["model.layers.0.mlp.up_proj"].options) == 3


def test_an_option_is_known_by_the_code_of_all_its_parts() -> None:
    plain, turned = key(Trellis(32)), key(Rotated(Trellis(32)))
    code = plain.split()[-1]
    assert code in turned.split()
    assert turned.split()[-2:] != [code, code]


def test_every_score_prefers_more_bits(bench: Callable[..., Bench], tmp_path: Path) -> None:
    table = bench().table(FORMATS, FORMATS, "text", FORMATS[0])
    assert len(table.measured[key(FORMATS[0])]) == 14  # kinds of linears, each in the first and second of two blocks
    assert min(table.measured[key(FORMATS[0])].values()) > 0
    shapes = {name: (row.weights // 32, 32) for name, row in table.tensors.items()}
    for score in SCORES.keys() - {EXPERTS}:  # which knows experts only
        for found in losses(table, score, FORMATS, shapes, FORMATS[0]).values():
            few, many = found.values()
            assert few > many >= 0, score
    combined = losses(table, "combined", FORMATS, shapes, FORMATS[0])
    name = "model.layers.0.self_attn.v_proj"  # alone in its group: the correction makes it what was measured
    assert combined[name][label(FORMATS[0])] == pytest.approx(
        table.measured[key(FORMATS[0])][table.tensors[name].group]
    )
    with pytest.raises(UnknownName):
        losses(table, "luck", FORMATS, shapes)
    assert table.tables[key(FORMATS[0])] > table.tables[key(FORMATS[1])] > 0
    assert len(table.lim) == len(table.zd) == 2
    stored = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert stored["identity"]["model"]


def test_zd_of_known_distributions() -> None:
    draw = torch.Generator().manual_seed(0)
    gauss = torch.randn(1_000_000, generator=draw)
    uniform = torch.rand(1_000_000, generator=draw)
    laplace = torch.distributions.Laplace(0.0, 1.0).icdf(uniform)
    for sample, share in ((gauss, 0.1587), (uniform, 0.2113), (laplace, 0.1216)):
        assert zd([sample]) == pytest.approx(share, abs=0.0012)
        assert zd([3 * sample + 1]) == pytest.approx(zd([sample]), abs=1e-5)
