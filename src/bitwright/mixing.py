"""Factors that every token mixes for itself: the scales of BinaryMoS (arXiv 2406.12311, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixer:
    """Experts of scales beside a first one, whose factors are 1 and whose routing logit is 0.

    `router` [k, C], `inputs` [k, C], `outputs` [k, R], float32: k further experts. Factors of the first taken out of
    all of them, and its logit out of all logits, any mixture of experts has this form.
    """

    router: Tensor
    inputs: Tensor
    outputs: Tensor

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [..., C] -> factors of inputs [..., C] and of outputs [..., R]; exactly 1 where experts agree."""
        with torch.autocast("cpu", enabled=False):
            logits = torch.nn.functional.pad(x.float() @ self.router.t(), (1, 0))
            gates = logits.softmax(-1)[..., 1:]
            return 1 + gates @ (self.inputs - 1), 1 + gates @ (self.outputs - 1)
