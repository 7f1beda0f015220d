"""The structure of a model is found by running it, whatever its family and size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitwright.errors import Refused
from bitwright.models.skeleton import skeleton
from bitwright.models.structure import Experts, infer
from bitwright.models.trace import Trace

from .conftest import FAMILIES, SIZES, tiny

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA = (QKV, ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
SHARED = (("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), ("mlp.shared_expert.down_proj",))
ATTENTION = (QKV, ("self_attn.o_proj",))
NEOX = (("attention.query_key_value",), ("attention.dense",), ("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",))
FALCON = (("self_attention.query_key_value", "mlp.dense_h_to_4h"), ("self_attention.dense",), ("mlp.dense_4h_to_h",))
GPTJ = (("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"), ("attn.out_proj",), ("mlp.fc_out",))
OPT = (QKV, ("self_attn.out_proj",), ("fc1",), ("fc2",))
WAVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "llama": LLAMA,
    "llama-tied": LLAMA,
    "qwen3": LLAMA,
    "gemma3": LLAMA,
    "gpt-neox": NEOX,
    "opt": OPT,
    "falcon": FALCON,
    "gptj": GPTJ,
    "mixtral": ATTENTION,
    "qwen3-moe": ATTENTION,
    "qwen2-moe": (*ATTENTION, *SHARED),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_waves_share_one_input(family: str) -> None:
    structure = infer(skeleton(tiny(family).config))
    assert [set(block.waves) for block in structure.blocks] == [set(WAVES[family])] * 2
    assert [block.waves[:2] for block in structure.blocks] == [WAVES[family][:2]] * 2
    assert structure.unsupported == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_exactly_one_place(family: str) -> None:
    structure = infer(skeleton(tiny(family).config))
    places = [f"{structure.embedding}.weight", *structure.kept]
    places += [] if structure.tied else [f"{structure.head}.weight"]
    for block in structure.blocks:
        inside = [*(f"{linear}.weight" for linear in block.linears), *(e.name for e in block.experts), *block.kept]
        places += [f"{block.path}.{name}" for name in inside]
    assert sorted(places) == sorted(name for name, _ in tiny(family).named_parameters())


def test_embedding_head_and_ties() -> None:
    def ends(family: str) -> tuple[str, str | None, bool]:
        structure = infer(skeleton(tiny(family).config))
        return structure.embedding, structure.head, structure.tied

    assert ends("llama") == ("model.embed_tokens", "lm_head", False)
    assert ends("llama-tied") == ("model.embed_tokens", "lm_head", True)
    assert ends("gemma3") == ("model.embed_tokens", "lm_head", True)
    assert ends("opt") == ("model.decoder.embed_tokens", "lm_head", True)
    assert ends("gpt-neox") == ("gpt_neox.embed_in", "lm_head", False)


def test_experts_routers_and_positions() -> None:
    block = infer(skeleton(tiny("qwen2-moe").config)).blocks[0]
    gate_up, down = Experts("mlp.experts.gate_up_proj", (3, 32, 32)), Experts("mlp.experts.down_proj", (3, 32, 16))
    assert block.experts == (gate_up, down)
    assert {k for k, why in block.kept.items() if why == "router"} == {
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
    }
    assert infer(skeleton(tiny("opt").config)).kept["model.decoder.embed_positions.weight"] == "used by embedding"


def test_blocks_may_differ() -> None:
    from transformers import DeepseekV3Config

    sizes: dict[str, Any] = SIZES | {"num_key_value_heads": 4}
    heads = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    moe = {"n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    first, second = infer(skeleton(DeepseekV3Config(**sizes, **heads, **moe, first_k_dense_replace=1))).blocks
    assert first.experts == ()
    assert "mlp.down_proj" in first.linears
    assert [e.shape for e in second.experts] == [(4, 32, 32), (4, 32, 16)]
    assert "mlp.shared_experts.down_proj" in second.linears


def test_size_does_not_matter() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(hidden_size=16384, intermediate_size=65536, num_local_experts=64, num_hidden_layers=3)
    structure = infer(skeleton(config))  # 600 billion weights
    assert structure.blocks[2].experts[0].shape == (64, 131072, 16384)


@pytest.mark.parametrize(("cls", "piece"), [("GPT2Config", r"mlp\.c_fc\.weight"), ("GptOssConfig", "gate_up_proj")])
def test_families_that_multiply_otherwise_are_refused_by_the_piece(cls: str, piece: str) -> None:
    import transformers

    experts = {"num_local_experts": 4, "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = getattr(transformers, cls)(**(SIZES | (experts if cls == "GptOssConfig" else {})))
    with pytest.raises(Refused, match=piece):
        infer(skeleton(config))


def test_blocks_that_are_no_chain_are_refused() -> None:
    model = skeleton(tiny("llama").config)
    assert infer(model).arity is None
    model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]), prepend=True)
    with pytest.raises(Refused, match=r"model\.layers\.1 does not take the output"):
        infer(model)


def test_a_model_without_blocks_is_refused() -> None:
    model = skeleton(tiny("llama").config)
    model.model.layers = nn.ModuleList()
    with pytest.raises(Refused, match="no list of repeated blocks"):
        infer(model)


def test_trace_knows_parameters_through_casts_and_slices() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.empty(3, 4, 5, device="meta"))
            self.table = nn.Parameter(torch.empty(4, 4, device="meta"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i in x.sum(-1).argmax().view(1):
                x = nn.functional.linear(x, self.stack[i % 3])
            return x @ self.table.to(torch.float32).T

    model = Odd()
    with torch.no_grad(), Trace(model) as trace:
        out = model(torch.randn(2, 5))
    assert (out.shape, out.is_meta) == ((2, 4), False)
    assert [(u.parameter, u.part, u.op) for u in trace.uses] == [("stack", True, "linear"), ("table", False, "matmul")]
