"""Reconstruction of a block by gradient: all of its packed linears learn together to put out what the float block did.

Two ways to move, both of bounded reach. Along the sign of the gradient (SignRound, the method of AutoRound, arXiv
2309.05516), where with a reach of half a step of the grid it is learned rounding (AdaRound, arXiv 2004.10568, has the
same range); or by Adam. With ranges alone, `reach` 0, it is the learned clipping of OmniQuant (arXiv 2308.13137,
equation 2), here of any continuous parameter of any format. The forward value is always what the planes decode to.
Inputs are those that the quantized blocks before give, targets what the float block makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitwright.block_task import BlockTask
from bitwright.errors import BadField
from bitwright.latent import TunedWeight
from bitwright.learning import Learning
from bitwright.protocols import Adaptive, QTensor

STEP = 12**0.5  # of an even grid, in root mean squares of its rounding error


def squared(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error."""
    return (found - wanted).square().mean()


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of each token relative to its energy, so that no massive token decides."""
    return ((found - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-12)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"squared": squared, "relative": relative}


@dataclass(frozen=True)
class Reconstruct:
    """`steps` on `batch` sequences each; a block that did not gain over all sequences stays as it was solved.

    `reach`: how far a weight may travel in all, in steps of the grid, before it is rounded; `parameter_reach` the same
    for scales, mins and the like, relative to their root mean square. `seed` of the order of sequences.
    """

    kind: ClassVar[str] = "reconstruct"
    steps: int = 100
    batch: int = 4
    reach: float = 0.5
    parameter_reach: float = 0.05
    signed: bool = True
    loss: str = "squared"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise BadField(self, name, getattr(self, name), "give 1 or more")
        for name in ("reach", "parameter_reach"):
            if not 0 <= getattr(self, name) <= 100:
                raise BadField(self, name, getattr(self, name), "give 0 to 100")
        if self.loss not in LOSSES:
            raise BadField(self, "loss", self.loss, f"give one of {', '.join(LOSSES)}")

    @torch.no_grad()
    def refine(
        self, task: BlockTask, packed: Mapping[str, QTensor], floats: Mapping[str, Tensor], targets: Sequence[Tensor]
    ) -> dict[str, QTensor]:
        """The packed weights of least loss, of those at the start and at the end; whose format lets tokens mix factors
        stay as they are."""
        pairs = [
            (x[i : i + 1], y[i : i + 1]) for x, y in zip(task.batches, targets, strict=True) for i in range(len(x))
        ]
        moving = {name: q for name, q in packed.items() if not isinstance(q.format, Adaptive)}
        layers = {name: _linear(task, name) for name in packed}
        for name, layer in layers.items():
            layer.weight = nn.Parameter(packed[name].dequantize(), requires_grad=name in moving)
        if not moving:
            return dict(packed)
        weights = {name: TunedWeight(q, floats[name], self._learning(q, floats[name])) for name, q in moving.items()}
        before = self._total(task, pairs)
        self._learn(task, pairs, {name: layers[name].get_parameter("weight") for name in moving}, weights)
        found = {name: QTensor(q.format, q.shape, weights[name].planes()) for name, q in moving.items()}
        best = dict(packed) | (found if self._total(task, pairs) < before else {})
        for name, layer in layers.items():
            layer.weight = nn.Parameter(best[name].dequantize(), requires_grad=False)
        return best

    def _learning(self, q: QTensor, original: Tensor) -> Learning:
        """Rates that lead to the given reach if every step goes the same way."""
        step = STEP * (q.dequantize() - original).square().mean().sqrt()
        unit = float(step / original.square().mean().sqrt().clamp(min=1e-12))
        rates = (2 * self.reach * unit / self.steps, 2 * self.parameter_reach / self.steps)
        return Learning(*rates, warmup=0.0, floor=0.0, memory=True, signed=self.signed)

    def _learn(
        self,
        task: BlockTask,
        pairs: Sequence[tuple[Tensor, Tensor]],
        shown: Mapping[str, nn.Parameter],
        weights: Mapping[str, TunedWeight],
    ) -> None:
        """Moves `weights`; the block computes with `shown`."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = list(shown.values())

        def gradient(index: int) -> tuple[Tensor, ...]:
            x, y = pairs[index]
            with torch.enable_grad():
                return torch.autograd.grad(LOSSES[self.loss](task.run(x), y), parameters)

        for step in range(self.steps):
            chosen = torch.randint(len(pairs), (self.batch,), generator=generator).tolist()
            sums = [sum(each[1:], each[0]) for each in zip(*task.map(gradient, chosen), strict=True)]
            moves = zip(weights.values(), parameters, sums, strict=True)
            list(task.map(partial(_move, factor=1 - step / self.steps), moves))

    def _total(self, task: BlockTask, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Loss over all sequences."""
        return sum(task.map(lambda pair: float(LOSSES[self.loss](task.run(pair[0]), pair[1])), pairs))


def _move(item: tuple[TunedWeight, nn.Parameter, Tensor], factor: float) -> None:
    """One step of one weight, seen by the block at once."""
    weight, parameter, gradient = item
    weight.update((gradient,), factor)
    weight.encode()
    parameter.copy_(weight.value())


def _linear(task: BlockTask, name: str) -> nn.Linear:
    layer = task.module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
