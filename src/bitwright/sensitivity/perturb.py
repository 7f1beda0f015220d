"""What a change of weights does to the whole model: KL divergence on a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.errors import WorkFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Text:
    """Sequences int64 [1, T] and what the float model says after each of their tokens: log p [T, V]."""

    ids: tuple[Tensor, ...]
    logs: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor, tokens: int) -> Text:
        """The first sequences of `ids` [S, T] up to a number of tokens, at least one."""
        taken = tuple(row[None] for row in ids[: max(1, tokens // ids.shape[1])])
        return cls(taken, tuple(_logs(model, row) for row in taken))


@torch.inference_mode()
def divergence(model: PreTrainedModel, text: Text) -> float:
    """KL(float || model as it is now), nats a token."""
    total, tokens = 0.0, 0
    for ids, before in zip(text.ids, text.logs, strict=True):
        after = _logs(model, ids)
        total += float((before.exp() * (before - after)).sum(dtype=torch.float64))
        tokens += len(after)
    if not torch.tensor(total).isfinite():
        raise WorkFailed("a perturbed model gives logits that are not finite.")
    return max(total / tokens, 0.0)


@torch.inference_mode()
def _logs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits
    return logits[0].float().log_softmax(-1)
