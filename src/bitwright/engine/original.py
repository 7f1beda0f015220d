"""The float model beside the one that is being quantized, block by block, for targets that make up for drift."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitwright.block_task import Map
from bitwright.calibrate.drift import drift
from bitwright.calibrate.observe import Gram, hessian, inputs
from bitwright.linalg import Hessian

Through = Callable[[nn.Module, Tensor], Tensor]  # hidden states through a block


@dataclass
class Original:
    """What a block gets in the float model, `hidden` [S, T, D] in batches of `size`, and the block with its weights:
    as they are in the model, and as transforms have left them."""

    hidden: Tensor
    size: int
    block: nn.Module = field(default_factory=nn.Module)
    transformed: nn.Module = field(default_factory=nn.Module)

    def enter(self, block: nn.Module) -> None:
        """Keep a block as it is in the model."""
        self.block = self.transformed = copy.deepcopy(block)

    def transform(self, block: nn.Module) -> None:
        """Keep it as transforms have left it, too: inputs of its linears are others then.

        What it puts out is still that of the model, whose last bits a run that goes on must find again.
        """
        self.transformed = copy.deepcopy(block)

    def observe(
        self, through: Through, block: nn.Module, name: str, batches: Sequence[Tensor], map: Map, label: str
    ) -> tuple[Hessian | None, Tensor]:
        """Of the inputs y of a linear of `block`: their Hessian, and (2 / tokens) sum (x - y) y^T, float32 [C, C]."""
        before, now = (of.get_submodule(name).get_parameter("weight") for of in (self.transformed, block))
        moved = torch.zeros(now.shape[1], now.shape[1], dtype=torch.float64)

        def both(pair: tuple[Tensor, Tensor]) -> tuple[Gram, Tensor]:
            x = inputs(lambda batch: through(self.transformed, batch), before, pair[0])
            y = inputs(lambda batch: through(block, batch), now, pair[1])
            return Gram.of(y), drift(x, y)

        def grams() -> Iterator[Gram]:
            for own, part in map(both, zip(self._batches(), batches, strict=True)):
                moved.add_(part)
                yield own

        found = hessian(grams(), label)
        return found, moved.mul_(2 / found.tokens if found else 0).float()

    def advance(self, through: Through, map: Map) -> None:
        """What the block puts out becomes the inputs of the next; the block is let go."""
        outputs = map(lambda batch: through(self.block, batch), self._batches())
        for batch, out in zip(self._batches(), outputs, strict=True):
            batch.copy_(out)
        self.block = self.transformed = nn.Module()

    def _batches(self) -> list[Tensor]:
        return [self.hidden[start : start + self.size] for start in range(0, len(self.hidden), self.size)]
