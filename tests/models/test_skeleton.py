"""Skeletons have no weights until they are filled, and then they are the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.errors import BadInput, Refused
from bitwright.models.skeleton import materialise, release, skeleton
from bitwright.models.source import open_source

from .conftest import FAMILIES, tiny

Saved = Callable[..., Path]
IDS = torch.arange(24).view(2, 12) % 97


@pytest.mark.parametrize("family", FAMILIES)
def test_filled_skeleton_is_the_model(family: str, saved: Saved) -> None:
    source = open_source(str(saved(family)))
    before = torch.get_rng_state()
    model = skeleton(source.config)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.is_meta for p in model.parameters())
    for name, buffer in tiny(family).named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
    materialise(model, source, "")
    reference = tiny(family)
    reference.set_attn_implementation(model.config._attn_implementation)
    reference.config._experts_implementation = "eager"
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(IDS).logits)


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "mixtral"])
def test_parts_are_filled_and_emptied_alone(family: str, saved: Saved) -> None:
    source = open_source(str(saved(family)))
    model = skeleton(source.config)
    block = model.get_submodule("model.layers.1")
    materialise(block, source, "model.layers.1", torch.bfloat16)
    for name, p in block.named_parameters():
        assert torch.equal(p, tiny(family).get_parameter(f"model.layers.1.{name}").bfloat16())
    assert all(p.is_meta for name, p in model.named_parameters() if not name.startswith("model.layers.1."))
    release(block)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())


def test_ties_survive_filling_and_emptying(saved: Saved) -> None:
    source = open_source(str(saved("llama-tied")))
    model = skeleton(source.config)
    for step in (lambda: None, lambda: materialise(model, source, ""), lambda: release(model)):
        step()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert "lm_head.weight" not in source.names()


def test_filled_weights_are_copies(saved: Saved) -> None:
    source = open_source(str(saved("llama")))
    model = skeleton(source.config)
    materialise(model, source, "")
    before = source.tensor("lm_head.weight").clone()
    model.lm_head.weight.zero_()
    assert torch.equal(source.tensor("lm_head.weight"), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float, saved: Saved, tmp_path: Path) -> None:
    tensors = load_file(saved("llama") / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved("llama") / "config.json").read_bytes())
    source = open_source(str(tmp_path))
    model = skeleton(source.config)
    materialise(model.get_submodule("model.layers.0"), source, "model.layers.0")
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        materialise(model.get_submodule("model.layers.1"), source, "model.layers.1")


def test_a_buffer_that_nobody_computes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM, LlamaPreTrainedModel

    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", lambda self, module: None)
    assert issubclass(LlamaForCausalLM, LlamaPreTrainedModel)
    with pytest.raises(Refused, match="inv_freq"):
        skeleton(tiny("llama").config)
