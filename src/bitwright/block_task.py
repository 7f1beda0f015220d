"""What works on a whole block, and what it may look at. S sequences, T tokens, D channels of the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bitwright.protocols import Format, QTensor

A = TypeVar("A")
B = TypeVar("B")


class Map(Protocol):
    """Independent tasks on several threads, results in the order of the items."""

    def __call__(self, task: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """One result an item."""
        ...


@dataclass(frozen=True)
class BlockTask:
    """A block with its float weights, and all that a transform may look at. Names are those inside the block."""

    module: nn.Module  # float32
    waves: tuple[tuple[str, ...], ...]  # linears that receive the very same input, in order of execution
    formats: Mapping[str, Format]  # of the linears that will be quantized
    types: Mapping[str, torch.dtype]  # in which every other parameter is stored
    run: Callable[[Tensor], Tensor]  # the block on hidden states [S, T, D], of calibration batches or of `probe`
    batches: Sequence[Tensor]  # calibration
    probe: Tensor  # a few random hidden states, for trials of what changes the output
    map: Map


@runtime_checkable
class Transform(Protocol):
    """Changes the parameters of one block so that its function stays the same and its linears quantize better."""

    kind: ClassVar[str]

    def apply(self, task: BlockTask) -> list[str]:
        """Changes `task.module` in place; returns the linears [names] whose inputs it had to leave as they are."""
        ...


@runtime_checkable
class Refiner(Protocol):
    """Improves the packed weights of a block together, on what the whole block puts out."""

    kind: ClassVar[str]

    def refine(
        self, task: BlockTask, packed: Mapping[str, QTensor], floats: Mapping[str, Tensor], targets: Sequence[Tensor]
    ) -> dict[str, QTensor]:
        """`packed` and `floats`: every quantized linear as solved, and before it was; `targets`: outputs of the float
        block, one [S, T, D] for each of `task.batches`. Leaves the weights it returns in `task.module`."""
        ...
