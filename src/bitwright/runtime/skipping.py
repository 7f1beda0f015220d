"""Experts that are not run for tokens that hardly need them (MC-MoE's online dynamic pruning, arXiv 2410.06270).

A chosen expert is skipped where its routing weight is less than a threshold times that of the first choice; what is
left is scaled to the same sum. The few tokens of a prompt that matter most keep all: those with the largest norm times
the mean attention that later tokens pay to them. A single new token has no later ones, so it is never protected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.errors import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROTECTED = 0.02  # of the tokens of a prompt


def kept(weights: Tensor, threshold: float, protected: Tensor) -> Tensor:
    """Bool [T, k]: which choices of these weights [T, k] are run: the first, and all of `protected` tokens [T]."""
    return (weights >= min(threshold, 1.0) * weights.amax(1, keepdim=True)) | protected[:, None]


def importance(states: Tensor, attention: Tensor) -> Tensor:
    """[B, T] of states [B, T, D] under attention probabilities [B, H, T, K] of their T queries to the last T keys."""
    count = states.shape[1]
    paid = attention[..., -count:].float().mean(1).sum(1)  # [B, T]: by later queries, as the mask is causal
    later = torch.arange(count, 0, -1, dtype=torch.float32)
    return states.float().abs().sum(-1) * paid / later


class Skipping:
    """Experts of a model skip from now on; `thresholds` by path of the module that runs the experts of a block."""

    def __init__(self, model: PreTrainedModel, thresholds: Mapping[str, float], protect: float = PROTECTED) -> None:
        if not thresholds:
            raise Refused(
                "no expert can be skipped: this model has no experts, or was written without thresholds for them; "
                "quantize it again with a recipe that reads calibration text."
            )
        self.protect = protect
        self.chosen = self.skipped = 0  # since the start
        self._attention: dict[str, Tensor] = {}
        if protect > 0:
            model.set_attn_implementation("eager")  # others give no probabilities
        for path, threshold in thresholds.items():
            model.get_submodule(path).register_forward_pre_hook(self._hook(path, threshold))
            if protect > 0:
                self._watch(model, path)

    @property
    def share(self) -> float:
        """Of the chosen experts, those that were skipped."""
        return self.skipped / max(self.chosen, 1)

    def _watch(self, model: nn.Module, path: str) -> None:
        """Keep the attention probabilities of the block that these experts belong to."""
        block = path
        while block and not hasattr(model.get_submodule(block), "self_attn"):
            block = block.rpartition(".")[0]
        if not block:
            raise Refused(f"{path} belongs to no block with attention, so no token can be protected: use all experts.")

        def seen(module: nn.Module, args: Any, output: Any) -> None:
            self._attention[path] = output[1]

        model.get_submodule(f"{block}.self_attn").register_forward_hook(seen)

    def _hook(self, path: str, threshold: float) -> Any:
        def choose(module: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            states, index, weights = args
            keep = kept(weights, threshold, self._protected(path, states))
            self.chosen += keep.numel()
            self.skipped += int((~keep).sum())
            left = torch.where(keep, weights, 0.0)
            scaled = left * (weights.sum(1, keepdim=True) / left.sum(1, keepdim=True))
            # The number of experts stands for none; tokens that keep all keep their very weights.
            none: int = module.num_experts  # type: ignore[assignment]
            return states, torch.where(keep, index, none), torch.where(keep.all(1, keepdim=True), weights, scaled)

        return choose

    def _protected(self, path: str, states: Tensor) -> Tensor:
        """Bool [T] of states [T, D], those of all sequences one after the other."""
        found = torch.zeros(len(states), dtype=torch.bool)
        attention = self._attention.pop(path, None)
        if attention is None or attention.shape[2] == 1:
            return found
        sequences, count = len(attention), attention.shape[2]
        rank = importance(states.view(sequences, count, -1), attention)
        best = rank.topk(math.ceil(self.protect * count), dim=1).indices
        return found.view(sequences, count).scatter(1, best, True).flatten()
