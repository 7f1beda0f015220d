"""MC-MoE on a tiny random Mixtral: its factors by their definition, and the formats it chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.artifact.layout import expert_of
from bitwright.engine.frontier import frontier
from bitwright.engine.job import Job
from bitwright.engine.run import prepare
from bitwright.errors import Refused
from bitwright.models.skeleton import skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.recipes.mc_moe import MENU, RECIPE, THREE, TWO
from bitwright.runtime.load import load_float
from bitwright.sensitivity.experts import significance, significances
from bitwright.solvers.rtn import Rtn

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_factors_are_those_of_the_paper(mixtral: Path) -> None:
    model, structure = load_float(str(mixtral)), infer(skeleton(open_source(str(mixtral)).config))
    found = list(significances(model, structure, [TWO, THREE], IDS, lambda done, of: None))
    assert len(found) == 8
    entered: list[torch.Tensor] = []
    block = model.model.layers[1].mlp
    handle = block.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    for row in IDS:
        model(row[None])
    handle.remove()
    x = torch.cat(entered, 1)
    probability = (x[0] @ block.gate.weight.T).softmax(-1)
    routed = torch.zeros_like(probability).scatter(1, probability.topk(2).indices, 1.0)
    expected = significance(routed.sum(0), (routed * probability).sum(0))
    torch.testing.assert_close(torch.tensor([share for _, share, _ in found[4:]]), expected, rtol=1e-4, atol=1e-6)
    exact = block(x)
    for stack in (block.experts.gate_up_proj, block.experts.down_proj):
        stack[2] = Rtn().solve(stack[2], THREE, None).dequantize()
    assert found[6][2][1] == pytest.approx(float((block(x) - exact).norm()), rel=1e-4)
    assert found[6][2][0] > found[6][2][1] > 0


def test_experts_are_chosen_block_by_block(mixtral: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("Mixtures of experts are chosen for by the words that they see. " * 40)
    job = Job(model=str(mixtral), out=tmp_path / "out", data=text, tokens=128, length=64, recipe="mc-moe")
    plan = prepare(job.model_copy(update={"target_bpw": 3.1}))[2]
    assert 2.9 < plan.stored_bits_per_weight <= 3.1
    experts = {name: fmt for name, fmt in plan.formats.items() if expert_of(name)}
    assert len(experts) == 16
    assert set(experts.values()) <= set(MENU.formats)
    for block in ("layers.0.", "layers.1."):
        own = {name: fmt for name, fmt in experts.items() if block in name}
        assert {TWO, THREE} <= set(own.values())
        for name, fmt in own.items():
            assert own[name.replace("gate_up_proj", "down_proj")] == fmt
    attention = {fmt for name, fmt in plan.formats.items() if "self_attn" in name}
    assert attention == {RECIPE.format}
    # The smallest formats alone are no answer here: every block has experts at 2 and 3 bits.
    assert all(p.decision is not None for p in frontier(job, 3))


def test_models_without_experts_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model, structure = load_float(str(tiny_model)), infer(skeleton(open_source(str(tiny_model)).config))
    with pytest.raises(Refused, match="has none"):
        next(significances(model, structure, [TWO], IDS, lambda done, of: None))
