"""Blocks run one after the other, with the arguments that the model gives them, are the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.models.calls import head_inputs, record_calls
from bitwright.models.skeleton import materialise, release, skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer

from .conftest import FAMILIES, tiny

Saved = Callable[..., Path]
IDS = torch.tensor([[1, 5, 5, 96, 3, 0, 7, 8, 9, 10, 11, 12], [2, 2, 4, 4, 6, 6, 8, 8, 0, 0, 1, 95]])


def block_states(family: str, paths: list[str], attention: str) -> list[Tensor]:
    """What enters the first block and leaves each block of the real model."""
    model = tiny(family)
    model.set_attn_implementation(attention)
    model.config._experts_implementation = "eager"
    states: list[Tensor] = []

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def leave(_: Any, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    blocks = [model.get_submodule(path) for path in paths]
    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    with torch.no_grad():
        model(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_one_by_one_are_the_model(family: str, saved: Saved) -> None:
    source = open_source(str(saved(family)))
    model = skeleton(source.config)
    structure = infer(model)
    hidden, calls = record_calls(model, source, structure, IDS)
    expected = block_states(family, [b.path for b in structure.blocks], model.config._attn_implementation)
    assert torch.equal(hidden, expected[0])
    for block, call, after in zip(structure.blocks, calls, expected[1:], strict=True):
        module = model.get_submodule(block.path)
        materialise(module, source, block.path)
        with torch.no_grad():
            hidden = call.run(module, hidden)
        assert torch.equal(hidden, after)
        release(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_leaves_the_last_block_comes_to_the_head_as_in_the_model(family: str, saved: Saved) -> None:
    source = open_source(str(saved(family)))
    model = skeleton(source.config)
    structure = infer(model)
    record_calls(model, source, structure, IDS)
    last = block_states(family, [b.path for b in structure.blocks], model.config._attn_implementation)[-1]
    expected: list[Tensor] = []
    real = tiny(family)
    real.set_attn_implementation(model.config._attn_implementation)
    real.config._experts_implementation = "eager"
    real.get_output_embeddings().register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    with torch.no_grad():
        real(IDS, use_cache=False)
    assert torch.equal(head_inputs(model, source, structure, last), expected[0])


def test_only_the_rows_of_the_tokens_are_read(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(saved("gemma3")))
    model = skeleton(source.config)
    structure = infer(model)
    asked: list[Tensor] = []
    own = source.rows
    monkeypatch.setattr(source, "rows", lambda name, ids: asked.append(ids) or own(name, ids))
    record_calls(model, source, structure, IDS)
    assert torch.equal(torch.cat(asked), IDS.unique())
    assert model.get_submodule(structure.embedding).weight.is_meta


def test_the_embedding_can_be_another_one(saved: Saved) -> None:
    source = open_source(str(saved("gemma3")))
    model = skeleton(source.config)
    structure = infer(model)
    table = torch.randn(97, 32)
    hidden, _ = record_calls(model, source, structure, IDS, rows=lambda ids: table[ids])
    assert torch.allclose(hidden, table[IDS] * 32**0.5, rtol=1e-6)  # Gemma scales what it looks up


def test_the_model_is_left_as_it_was(saved: Saved) -> None:
    source = open_source(str(saved("opt")))
    model = skeleton(source.config)
    structure = infer(model)
    blocks = list(model.model.decoder.layers)
    weight, padding = model.get_input_embeddings().weight, model.get_input_embeddings().padding_idx

    def fail(ids: Tensor) -> Tensor:
        raise RuntimeError("rows are out")

    record_calls(model, source, structure, IDS)
    with pytest.raises(RuntimeError, match="rows are out"):
        record_calls(model, source, structure, IDS, rows=fail)
    assert list(model.model.decoder.layers) == blocks
    assert model.get_input_embeddings().weight is weight
    assert model.get_input_embeddings().padding_idx == padding
    assert all(p.is_meta for block in blocks for p in block.parameters())
    assert not model.get_submodule("model.decoder.final_layer_norm").weight.is_meta


def test_layers_get_their_own_arguments(saved: Saved) -> None:
    source = open_source(str(saved("gemma3")))
    model = skeleton(source.config)
    _, (sliding, full) = record_calls(model, source, infer(model), IDS)
    given = [next(v for v in (*c.args, *c.kwargs.values()) if isinstance(v, tuple))[0] for c in (sliding, full)]
    assert not torch.equal(*given)  # the rotary embeddings of sliding and full attention differ
