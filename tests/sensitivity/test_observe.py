"""Statistics of the float model against autograd, and the predicted divergence against the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.runtime.load import load_float
from bitwright.sensitivity.observe import observe
from bitwright.sensitivity.perturb import Text, divergence

WAVE = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj")
DOWN = ("model.layers.1.mlp.down_proj",)
BLOCKS = ["model.layers.0", "model.layers.1"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """With larger weights than at birth, so that blocks matter to the logits."""
    model = load_float(str(tiny_model))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)
    return model


def ids(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(seed))


def test_grams_and_gradients_are_those_of_autograd(model: Any) -> None:
    sequences = ids(2, 12)
    seen, _ = observe(model, [WAVE, DOWN], BLOCKS, sequences, seed=3)
    draw = torch.Generator().manual_seed(3)
    gram, gradient, guided = torch.zeros(96, 96), torch.zeros(64), torch.zeros(96, 96)
    kept: dict[str, torch.Tensor] = {}
    layer = model.get_submodule(DOWN[0])
    handle = layer.register_forward_hook(lambda m, args, out: kept.update(x=args[0], y=out) or out.retain_grad())
    for row in sequences:
        inputs = model.get_input_embeddings()(row[None]).detach().requires_grad_()
        logits = model(inputs_embeds=inputs).logits[0]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
        x, g = kept["x"][0].detach(), kept["y"].grad[0]
        gram += x.T @ x
        gradient += g.square().sum(0)
        guided += (x * g.square().sum(1, keepdim=True)).T @ x
    handle.remove()
    found = seen[DOWN[0]]
    assert found.gram.tokens == 24
    torch.testing.assert_close(found.gram.sum, gram, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(found.guided, guided, rtol=1e-3, atol=1e-8)
    assert seen[WAVE[0]].gram is seen[WAVE[2]].gram
    assert seen[WAVE[1]].gradient.shape == (32,)


@pytest.mark.parametrize("name", [WAVE[0], WAVE[2], DOWN[0]])
def test_the_prediction_is_the_divergence_of_a_small_change(model: Any, name: str) -> None:
    sequences = ids(12, 48)
    seen = observe(model, [WAVE, DOWN], BLOCKS, sequences)[0][name]
    weight = model.get_submodule(name).weight
    before = weight.detach().clone()
    text = Text.of(model, sequences, sequences.numel())
    ratios = []
    for seed in range(4):
        change = 0.02 * before.std() * torch.randn(before.shape, generator=torch.Generator().manual_seed(seed))
        share = seen.gradient / seen.gradient.sum()
        predicted = 0.5 * float((share * ((change @ seen.guided) * change).sum(1)).sum()) / seen.gram.tokens
        weight.data.copy_(before + change)
        ratios.append(divergence(model, text) / predicted)
        weight.data.copy_(before)
    assert 0.4 < sum(ratios) / len(ratios) < 2.5


def test_turns_are_cosines(model: Any) -> None:
    _, turns = observe(model, [WAVE], BLOCKS, ids(1, 10))
    for turn in turns:
        assert turn.tokens == 10
        assert -1 <= turn.cosine / turn.tokens <= 1
    silent = model.get_submodule("model.layers.1")
    outs = [silent.self_attn.o_proj.weight, silent.mlp.down_proj.weight]
    saved = [w.detach().clone() for w in outs]
    for w in outs:
        w.data.zero_()
    _, turns = observe(model, [WAVE], BLOCKS, ids(1, 10))
    for w, old in zip(outs, saved, strict=True):
        w.data.copy_(old)
    assert turns[1].cosine / turns[1].tokens == pytest.approx(1)
