"""Tiny random models of many families, saved as a user would have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("FalconConfig", {}),
    "gptj": ("GPTJConfig", {"rotary_dim": 4}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeConfig", {"head_dim": 8} | MOE),
    "qwen2-moe": ("Qwen2MoeConfig", {"shared_expert_intermediate_size": 16} | MOE),
}


@cache
def tiny(family: str) -> Any:
    """The same random model of a family each time, in eval mode. Do not change it."""
    import transformers

    cls, extra = FAMILIES[family]
    config = getattr(transformers, cls)(**(SIZES | extra))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() < 2:  # norms and biases that show when they are mixed up
                parameter.data += 0.1 * torch.rand(parameter.shape)
    return model.eval()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a tiny model; `shards` in transformers' words ("40KB")."""

    @cache
    def save(family: str, shards: str = "5GB") -> Path:
        folder = tmp_path_factory.mktemp("family") / family
        tiny(family).save_pretrained(folder, max_shard_size=shards)
        return folder

    return save
