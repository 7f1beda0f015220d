"""Attention for learning is that of torch, and models that attend otherwise keep theirs."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig

from bitwright.tune import attention

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
}  # fmt: skip


@pytest.mark.parametrize("length", [1, 63, 64, 130])
@pytest.mark.parametrize(("heads", "keys"), [(6, 2), (3, 3)])
def test_values_and_gradients_are_those_of_torch(length: int, heads: int, keys: int) -> None:
    shapes = [(2, heads, length, 8), (2, keys, length, 8), (2, keys, length, 8)]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True, scale=0.3)
    found = attention.causal(*given, 0.3)
    assert torch.allclose(found, expected, atol=1e-12)
    upstream = torch.randn_like(expected)
    # Sums over blocks of queries are float32.
    for ours, theirs in zip(*(torch.autograd.grad(x, given, upstream) for x in (found, expected)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SMALL), Gemma3TextConfig(**SMALL, sliding_window=16, query_pre_attn_scalar=8)]
)
def test_models_compute_what_they_did(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(50, (1, 70))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        before = model(ids).logits
        attention.use(model)
        assert model.config._attn_implementation == attention.NAME
        assert torch.allclose(model(ids).logits, before, atol=1e-4)


def test_other_attention_stays() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL), attn_implementation="eager")
    attention.use(model)
    assert model.config._attn_implementation == "eager"


def test_what_is_not_plainly_causal_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "causal", lambda *_: pytest.fail("ours was used"))
    query, key = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    module = torch.nn.Module()
    for others in ({"is_causal": False}, {"position_bias": torch.zeros(1, 2, 5, 5)}, {"dropout": 0.5}):
        attention._attend(module, query, key, key, None, **others)
    attention._attend(module, query, key, key, torch.ones(1, 1, 5, 5, dtype=torch.bool))
    attention._attend(module, query[:, :, :1], key, key, None)
    module.is_causal = False  # type: ignore[assignment]
    attention._attend(module, query, key, key, None)
    with pytest.raises(ValueError, match="softcap"):
        attention._attend(module, query, key, key, None, softcap=30.0)
