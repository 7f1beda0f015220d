"""A decoder language model as the compiled engine runs it, read off a transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bitwright.errors import Refused
from bitwright.runtime import native
from bitwright.runtime.linear import Packed, QEmbedding, QLinear, TiedHead

if TYPE_CHECKING:
    from bitwright import _core

    Weight = _core.Matrix | tuple[Tensor, Tensor | None]  # packed, or float32 weight and bias

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the length of the text
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


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


def read_plan(model: nn.Module, fine_cache: bool) -> Plan:
    """The plan of a causal language model that `refusal` has nothing against."""
    return _Reader(model, fine_cache).plan()


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


class _Reader:
    def __init__(self, model: Any, fine_cache: bool) -> None:
        self.model = model
        self.fine_cache = fine_cache
        self.config = model.config
        self.gemma = self.config.model_type.startswith("gemma")
        self.matrices: dict[int, _core.Matrix] = {}  # by address of the codes: a tied head shares its table's

    def plan(self) -> Plan:
        config, body = self.config, self.model.model
        attention = body.layers[0].self_attn
        kinds = self._rope_kinds()
        embedding, scale = self._embedding(body.embed_tokens)
        return Plan(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            ffn=config.intermediate_size,
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            eps=config.rms_norm_eps,
            embedding_scale=scale,
            attention_scale=attention.scaling,
            attention_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
            logit_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
            gelu=_activation(config) != "silu",
            fine_cache=self.fine_cache,
            frequencies=[frequencies for frequencies, _ in kinds.values()],
            rope_scales=[factor for _, factor in kinds.values()],
            layers=[self._layer(layer, i, list(kinds)) for i, layer in enumerate(body.layers)],
            norm=self._norm(body.norm),
            embedding=embedding,
            head=self._weight(self.model.lm_head),
        )

    def _rope_kinds(self) -> dict[str, tuple[Tensor, float]]:
        """Frequencies and scale by kind of layer; the kind "" stands for all."""
        rotary = self.model.model.rotary_emb
        kinds = getattr(rotary, "layer_types", None)
        names = [""] if kinds is None else [f"{kind}_" for kind in kinds]
        return {
            name.removesuffix("_"): (
                getattr(rotary, f"{name}inv_freq").float().contiguous(),
                float(getattr(rotary, f"{name}attention_scaling")),
            )
            for name in names
        }

    def _layer(self, layer: Any, index: int, kinds: list[str]) -> Layer:
        attention, ffn = layer.self_attn, layer.mlp
        four_norms = hasattr(layer, "pre_feedforward_layernorm")
        kind = getattr(attention, "layer_type", None) or getattr(layer, "attention_type", None)
        window = getattr(attention, "sliding_window", None)
        if self.config.model_type == "mistral":
            window = self.config.sliding_window
        return Layer(
            q=self._weight(attention.q_proj),
            k=self._weight(attention.k_proj),
            v=self._weight(attention.v_proj),
            o=self._weight(attention.o_proj),
            gate=self._weight(ffn.gate_proj),
            up=self._weight(ffn.up_proj),
            down=self._weight(ffn.down_proj),
            before_attention=self._norm(layer.input_layernorm),
            after_attention=self._norm(layer.post_attention_layernorm) if four_norms else None,
            before_ffn=self._norm(layer.pre_feedforward_layernorm if four_norms else layer.post_attention_layernorm),
            after_ffn=self._norm(layer.post_feedforward_layernorm) if four_norms else None,
            q_norm=self._norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            k_norm=self._norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            window=window or 0,
            rope=kinds.index(kind) if kind in kinds else 0,
        )

    def _norm(self, module: Any) -> Tensor:
        weight: Tensor = module.weight.detach().float()
        return (weight + 1 if self.gemma else weight).contiguous()

    def _weight(self, module: nn.Module) -> Weight:
        if isinstance(module, QLinear):
            return self._matrix(module, module.bias)
        if not isinstance(module, nn.Linear):
            raise Refused(f"the compiled engine has no step for a {type(module).__name__}: use --engine torch.")
        bias = None if module.bias is None else module.bias.detach().float().contiguous()
        return module.weight.detach().float().contiguous(), bias

    def _embedding(self, module: nn.Module) -> tuple[_core.Matrix | Tensor, float]:
        if isinstance(module, QEmbedding):
            return self._matrix(module, None), module.scale
        scale = getattr(module, "embed_scale", None)
        assert isinstance(module, nn.Embedding)
        return module.weight.detach().float().contiguous(), 1.0 if scale is None else float(scale)

    def _matrix(self, module: Packed, bias: Tensor | None) -> _core.Matrix:
        key = module.planes["weight"].data_ptr()
        if isinstance(module, QEmbedding | TiedHead) and key in self.matrices:
            return self.matrices[key]
        self.matrices[key] = native.native_matrix(module.terms(), module.shape, bias).core
        return self.matrices[key]
