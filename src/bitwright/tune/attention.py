"""Causal attention for learning on a CPU: blocks of queries against the keys before them, by plain matrix products.

Half of what the fused kernel of torch takes, forward and back, or less (`benchmarks/learning.py`), for half of the
probabilities [T, T] of each head in memory from forward to back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "bitwright_causal"  # in the registry of transformers
BLOCK = 64  # queries at a time


class _Causal(torch.autograd.Function):
    """softmax(scale Q K^T) V with keys up to the query's own position; the probabilities are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Queries [K, G, T, d], G heads to one of K of keys [K, T, d] and values [K, T, e] -> [K, G, T, e]."""
        heads, shared, length, _ = query.shape
        out = query.new_empty(heads, shared, length, value.shape[2])
        kept = []
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            scores = _rows(query, start, stop) @ key[:, :stop].mT
            scores = scores.mul_(scale).view(heads, shared, stop - start, stop)
            later = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
            scores[..., start:].masked_fill_(later, -math.inf)
            weights = scores.softmax(-1)
            kept.append(weights)
            out[:, :, start:stop] = (weights.flatten(1, 2) @ value[:, :stop]).view(heads, shared, stop - start, -1)
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Through the probabilities of each block; sums over blocks in float32."""
        query, key, value, out, *kept = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        inner = (upstream.float() * out.float()).sum(-1, keepdim=True).to(upstream.dtype)
        for start, weights in zip(range(0, query.shape[2], BLOCK), kept, strict=True):
            stop = start + weights.shape[2]
            given = _rows(upstream, start, stop)
            of_value[:, :stop] += weights.flatten(1, 2).mT @ given
            scores = (given @ value[:, :stop].mT).view_as(weights)
            scores = scores.sub_(inner[:, :, start:stop]).mul_(weights).mul_(ctx.scale).flatten(1, 2)
            of_query[:, :, start:stop] = (scores @ key[:, :stop]).view_as(query[:, :, start:stop])
            of_key[:, :stop] += scores.mT @ _rows(query, start, stop)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """[K, G, T, d] -> positions of all heads that share keys, [K, G * (stop - start), d]."""
    return x[:, :, start:stop].flatten(1, 2)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of queries [B, H, T, d] to keys and values [B, K, T, d] before them, K dividing H; [B, H, T, d]."""
    batch, heads, length, dim = query.shape
    shared = heads // key.shape[1]
    grouped = query.reshape(batch * key.shape[1], shared, length, dim)
    out: Tensor = _Causal.apply(grouped, key.flatten(0, 1), value.flatten(0, 1), scale)  # type: ignore[no-untyped-call]
    return out.view(batch, heads, length, -1)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: what is not plainly causal goes to torch's attention. Returns [B, T, H, d]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked = others.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if asked is None else asked
    plain = is_causal and attention_mask is None and query.shape[2] == key.shape[2]
    if not plain or others.get("dropout") or any(others.get(name) is not None for name in ("softcap", "position_bias")):
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return found
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        out = causal(query, key, value, query.shape[3] ** -0.5 if scaling is None else scaling)
    return out.transpose(1, 2).contiguous(), None


def use(model: PreTrainedModel) -> None:
    """Let a model attend so from now on, where it leaves attention to torch."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
