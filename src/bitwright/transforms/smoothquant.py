"""SmoothQuant (arXiv 2211.10438, equation 4): activations hand part of their range over to the weights.

s = max|x|^alpha / max|W|^(1 - alpha) for each input column, over all linears that share the input. Tokens of massive
activation, the first of a text above all, are left out of max|x|: they would decide it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.block_task import BlockTask
from bitwright.calibrate.observe import MASSIVE, inputs
from bitwright.errors import BadField
from bitwright.transforms._sites import Site, scale, sites

LEAST = 1e-5


@dataclass(frozen=True)
class SmoothQuant:
    """`alpha`: how much of the range of activations goes into the weights."""

    kind: ClassVar[str] = "smoothquant"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadField(self, "alpha", self.alpha, "give 0 to 1")

    def apply(self, task: BlockTask) -> list[str]:
        """Scale every site that a norm feeds, as the paper does."""
        left: list[str] = []
        for wave, site in sites(task):
            if site is None or site.plus is None:
                left += wave
            else:
                scale(task, site, self._scales(task, site))
        return left

    def _scales(self, task: BlockTask, site: Site) -> Tensor:
        layers = [task.module.get_submodule(name) for name in site.consumers]
        first = layers[0]
        assert isinstance(first, torch.nn.Linear)
        largest = torch.stack(list(task.map(lambda b: _largest(inputs(task.run, first.weight, b)), task.batches))).amax(
            0
        )
        weights = torch.stack([layer.get_parameter("weight").abs().amax(0) for layer in layers]).amax(0)
        s = (largest.clamp(min=LEAST) ** self.alpha / weights.clamp(min=LEAST) ** (1 - self.alpha)).clamp(min=LEAST)
        return site.mean(s)


def _largest(x: Tensor) -> Tensor:
    """max|x| [C] over ordinary tokens."""
    x = x.flatten(0, -2)
    energy = x.square().sum(1)
    return x[energy <= MASSIVE * energy.median()].abs().amax(0)


EXAMPLES = (SmoothQuant(), SmoothQuant(0.8))
