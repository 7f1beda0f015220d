"""Packed modules in the place of a model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitwright.artifact.layout import expert_of
from bitwright.errors import BadArtifact
from bitwright.protocols import Adaptive, Format
from bitwright.runtime.linear import Packed, QEmbedding, QExperts, QLinear, SplitExperts, TiedHead

if TYPE_CHECKING:
    from bitwright.artifact.layout import Quantization, Weight


def install(model: nn.Module, quantization: Quantization, formats: tuple[Format, ...]) -> None:
    """Replace the modules that `quantization` names by packed ones with empty planes on the meta device."""
    with torch.device("meta"):
        for weight in quantization.weights:
            place = expert_of(weight.name)
            if isinstance(formats[weight.format], Adaptive) and (place is not None or len(weight.shape) == 3):
                raise BadArtifact(
                    f"{weight.name} is of experts, whose scales no token mixes: write the artifact again."
                )
            if place is not None:
                _put_expert(model, weight, formats[weight.format], *place)
                continue
            parent, leaf = _parent(model, weight.name)
            old = getattr(parent, leaf, None)
            own = old if isinstance(old, nn.Parameter) else getattr(old, "weight", None)
            if not isinstance(own, Tensor) or tuple(own.shape) != weight.shape:
                has = list(own.shape) if isinstance(own, Tensor) else "no weight"
                raise BadArtifact(
                    f"{weight.name} is stored as {list(weight.shape)}, but config.json makes it {has}: copy the "
                    "artifact again."
                )
            new: nn.Module
            if len(weight.shape) == 3:
                new = QExperts(formats[weight.format], (weight.shape[0], *weight.matrix))
                parent._parameters.pop(leaf, None)
            elif isinstance(old, nn.Embedding):
                new = QEmbedding(formats[weight.format], weight.matrix, _embedding_scale(old))
            else:
                new = QLinear(formats[weight.format], weight.matrix, getattr(old, "bias", None) is not None)
            setattr(parent, leaf, new)
    for path, module in model.named_modules():
        if isinstance(module, SplitExperts) and len(module._modules) < module.shape[0]:
            raise BadArtifact(f"{path} lacks some of its {module.shape[0]} experts: write the artifact again.")
    for head, table in quantization.tied:
        owner, place_of = _parent(model, table)
        embedding = getattr(owner, place_of, None)
        if not isinstance(embedding, QEmbedding):
            raise BadArtifact(f"{head} is tied to {table}, which is no quantized embedding: write the artifact again.")
        parent, leaf = _parent(model, head)
        setattr(parent, leaf, TiedHead(embedding))
    if quantization.tied:
        # nothing is left for transformers to tie
        model._tied_weights_keys = model.all_tied_weights_keys = {}  # type: ignore[assignment]


def _put_expert(model: nn.Module, weight: Weight, fmt: Format, stack: str, expert: int) -> None:
    """One expert of a stack; the first of them takes the place of the parameter."""
    parent, leaf = _parent(model, stack)
    old = parent._parameters.get(leaf)
    if old is not None and old.dim() == 3:
        del parent._parameters[leaf]
        setattr(parent, leaf, SplitExperts((old.shape[0], old.shape[1], old.shape[2])))
    experts = getattr(parent, leaf, None)
    if not isinstance(experts, SplitExperts) or expert >= experts.shape[0] or weight.shape != experts.shape[1:]:
        raise BadArtifact(f"config.json has no expert {weight.name} of {list(weight.shape)}: copy the artifact again.")
    experts.add_module(f"expert{expert}", Packed(fmt, weight.matrix))


def place(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a kept tensor into its parameter or buffer, in float32 if it is a float."""
    parent, leaf = _parent(model, name)
    value = value.float() if value.is_floating_point() else value
    there = parent._parameters.get(leaf, parent._buffers.get(leaf))
    if there is not None and there.shape != value.shape:
        raise BadArtifact(f"{name} is stored as {list(value.shape)}, but config.json makes it {list(there.shape)}.")
    if leaf in parent._parameters:
        parent._parameters[leaf] = nn.Parameter(value.clone(), requires_grad=False)
    elif leaf in parent._buffers:
        parent._buffers[leaf] = value.clone()
    else:
        raise BadArtifact(f"the artifact holds {name}, which the model has no place for.")


def _parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        parent = model.get_submodule(path)
    except AttributeError:
        raise BadArtifact(f"the artifact holds {name}, which the model has no place for.") from None
    return parent, leaf


def _embedding_scale(table: nn.Embedding) -> float:
    """The constant by which some embeddings (Gemma) multiply what they look up."""
    scale = getattr(table, "scalar_embed_scale", None)
    if scale is None and hasattr(table, "embed_scale"):
        scale = table.embed_scale
    return 1.0 if scale is None else float(scale)
