"""One more step of a text in a model of transformers, whose cache of keys and values has had two names."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor


def continued(model: Any, ids: Tensor, cache: Any, **asked: Any) -> tuple[Tensor, Any]:
    """Logits [B, T, V] of tokens [B, T] behind those of `cache` (None: the first), and the cache for the next call."""
    # "past_key_values" before transformers 5.24, which warns of it.
    name = "cache" if "cache" in signature(getattr(model, "forward", model)).parameters else "past_key_values"
    out = model(input_ids=ids, use_cache=True, **{name: cache}, **asked)
    return out.logits, getattr(out, name)
