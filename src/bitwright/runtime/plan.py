"""A decoder language model as the compiled engine runs it: read off its config, whoever holds the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bitwright import _core

    Weight = _core.Matrix | tuple[Tensor, Tensor | None]  # packed, or float32 weight and bias

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the length of the text
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
FOUR_NORMS = ("gemma2", "gemma3_text")  # also behind attention and feed-forward
HEAD_NORMS = ("qwen3", "gemma3_text")  # of queries and keys
WINDOWS = ("qwen2", "qwen3", "gemma2", "gemma3_text")  # in layers of their choice; all layers of mistral have one


@dataclass(frozen=True)
class Layer:
    """One decoder block; norms float32, None where the family has none."""

    q: Weight
    k: Weight
    v: Weight
    o: Weight
    gate: Weight
    up: Weight
    down: Weight
    before_attention: Tensor
    after_attention: Tensor | None
    before_ffn: Tensor
    after_ffn: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int  # positions that a token sees, 0: all
    rope: int  # which of the plan's frequencies


@dataclass(frozen=True)
class Plan:
    """What `_core.Engine` reads."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    positions: int
    eps: float
    embedding_scale: float
    attention_scale: float
    attention_cap: float  # 0: none
    logit_cap: float
    gelu: bool  # else SiLU
    fine_cache: bool
    in_place: bool  # weights stay where they lie, else they are copied side by side, from where they stream faster
    files: list[Tensor]  # mapped ones that weights are views of: the system may have their memory once they are copied
    frequencies: list[Tensor]
    rope_scales: list[float]
    layers: list[Layer]
    norm: Tensor
    embedding: _core.Matrix | Tensor
    head: Weight

    def products(self) -> Iterator[Weight]:
        """Every weight that a token is multiplied by."""
        for layer in self.layers:
            yield from (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
        yield self.head


class Weights(Protocol):
    """Weights by the names that modules have in transformers. `BadArtifact` where there is none."""

    files: list[Tensor]

    def product(self, name: str, bias: Tensor | None) -> Weight:
        """The weight of a linear layer, float32 [R] `bias` included."""

    def table(self, name: str) -> _core.Matrix | Tensor:
        """An embedding, packed or float32 [V, C]."""

    def vector(self, name: str) -> Tensor:
        """A parameter of one dimension in float32."""


def weight_bytes(weight: Weight) -> int:
    """Bytes read for one token."""
    return sum(t.nbytes for t in weight if t is not None) if isinstance(weight, tuple) else weight.nbytes


def weight_count(weight: Weight) -> int:
    """Multiply-adds for one token."""
    return prod(weight[0].shape if isinstance(weight, tuple) else weight.shape)


def refusal(config: Any) -> str | None:
    """Why the engine cannot run models of this transformers config; None if it can."""
    if config.model_type not in FAMILIES:
        return f"the engine knows {', '.join(FAMILIES)}, this is {config.model_type}"
    act = _activation(config)
    if act not in ACTIVATIONS:
        return f"the engine computes no {act}"
    rope = config.rope_parameters
    for kind in [rope] if "rope_type" in rope else rope.values():
        if kind["rope_type"] not in STATIC_ROPE:
            return f"its rotary embedding of type {kind['rope_type']} depends on the length of the text"
    return None


def read_plan(config: Any, weights: Weights, fine_cache: bool, in_place: bool = False) -> Plan:
    """The plan of a causal language model whose transformers config `refusal` has nothing against."""
    kinds = _rope_kinds(config)
    gemma, head_dim = _gemma(config), _head_dim(config)
    return Plan(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        eps=config.rms_norm_eps,
        embedding_scale=config.hidden_size**0.5 if gemma else 1.0,
        attention_scale=getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5,
        attention_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        logit_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
        gelu=_activation(config) != "silu",
        fine_cache=fine_cache,
        in_place=in_place,
        files=weights.files,
        frequencies=[frequencies for frequencies, _ in kinds.values()],
        rope_scales=[factor for _, factor in kinds.values()],
        layers=[_layer(config, weights, i, list(kinds)) for i in range(config.num_hidden_layers)],
        norm=_norm(config, weights, "model.norm"),
        embedding=weights.table("model.embed_tokens"),
        head=weights.product("lm_head", None),
    )


def _layer(config: Any, weights: Weights, index: int, kinds: list[str]) -> Layer:
    def norm(name: str, there: bool) -> Tensor | None:
        return _norm(config, weights, f"model.layers.{index}.{name}") if there else None

    def product(name: str) -> Weight:
        full = f"model.layers.{index}.{name}"
        return weights.product(full, weights.vector(f"{full}.bias") if _has_bias(config, name) else None)

    family = config.model_type
    four, heads = family in FOUR_NORMS, family in HEAD_NORMS
    kind = config.layer_types[index] if family in WINDOWS else ""
    windowed = family == "mistral" or kind == "sliding_attention"
    return Layer(
        q=product("self_attn.q_proj"),
        k=product("self_attn.k_proj"),
        v=product("self_attn.v_proj"),
        o=product("self_attn.o_proj"),
        gate=product("mlp.gate_proj"),
        up=product("mlp.up_proj"),
        down=product("mlp.down_proj"),
        before_attention=_norm(config, weights, f"model.layers.{index}.input_layernorm"),
        after_attention=norm("post_attention_layernorm", four),
        before_ffn=_norm(
            config, weights, f"model.layers.{index}.{'pre_feedforward' if four else 'post_attention'}_layernorm"
        ),
        after_ffn=norm("post_feedforward_layernorm", four),
        q_norm=norm("self_attn.q_norm", heads),
        k_norm=norm("self_attn.k_norm", heads),
        window=(config.sliding_window or 0) if windowed else 0,
        rope=kinds.index(kind) if kind in kinds else 0,
    )


def _has_bias(config: Any, name: str) -> bool:
    part, _, leaf = name.partition(".")
    if config.model_type == "qwen2":
        return leaf in ("q_proj", "k_proj", "v_proj")
    return bool(getattr(config, "attention_bias" if part == "self_attn" else "mlp_bias", False))


def _norm(config: Any, weights: Weights, name: str) -> Tensor:
    weight = weights.vector(f"{name}.weight")
    return (weight + 1 if _gemma(config) else weight).contiguous()


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _gemma(config: Any) -> bool:
    return str(config.model_type).startswith("gemma")


def _head_dim(config: Any) -> int:
    found: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return found


def _rope_kinds(config: Any) -> dict[str, tuple[Tensor, float]]:
    """Frequencies and scale by kind of layer; the kind "" stands for all."""
    if "rope_type" in config.rope_parameters:
        return {"": _frequencies(config, config.rope_parameters, {})}
    return {
        kind: _frequencies(config, config.rope_parameters[kind], {"layer_type": kind})
        for kind in sorted(set(config.layer_types))
    }


def _frequencies(config: Any, rope: dict[str, Any], layer: dict[str, str]) -> tuple[Tensor, float]:
    if rope["rope_type"] == "default":
        dim = _head_dim(config)
        return 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, **layer)
    return frequencies.float().contiguous(), float(scale)
