"""Processes that train one model together: sequences and matrices are shared out among those of torchrun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bitwright.engine.workers import cores

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # others wait while the first process quantizes and writes


class Ranks:
    """This process among `count`; alone without torchrun. All must call the same methods in the same order.

    Each process has whole sequences and whole matrices: their latent weights, moments and codes are on one process
    only. Gradients of every single sequence meet on the owner of a matrix and are summed there in order, so that the
    bytes do not depend on how many processes there were.
    """

    def __init__(self) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self.threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)

    @property
    def leads(self) -> bool:
        """Whether this process quantizes, writes and talks."""
        return self.rank == 0

    def owner(self, index: int) -> int:
        """The process that has a matrix."""
        return index % self.count

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's part of a list that all have."""
        start, stop = (len(rows) * at // self.count for at in (self.rank, self.rank + 1))
        return rows[start:stop]

    def joined(self, parts: list[T]) -> list[T]:
        """The parts of all processes in order, on all of them."""
        if self.count == 1:
            return parts
        every: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(every, parts)
        return [item for own in every for item in own]

    def collected(self, parts: list[Tensor], owner: int) -> list[Tensor] | None:
        """The tensors of all processes in order (as many, of one shape and type) on `owner`, None on the others."""
        if self.count == 1:
            return parts
        own = torch.stack(parts)
        every = [torch.empty_like(own) for _ in range(self.count)] if self.rank == owner else None
        dist.gather(own, every, dst=owner)
        return None if every is None else [part for stack in every for part in stack]

    def spread(self, tensor: Tensor, owner: int) -> None:
        """Give all processes the owner's values, in place."""
        if self.count > 1:
            dist.broadcast(tensor, src=owner)

    def merged(self, own: Mapping[str, T]) -> dict[str, T]:
        """The entries of all processes, on the first; the others get their own."""
        if self.count == 1:
            return dict(own)
        every: list[Mapping[str, T]] | None = [{}] * self.count if self.leads else None
        dist.gather_object(own, every, dst=0)
        return dict(own) if every is None else {name: value for part in every for name, value in part.items()}

    def agreed(self, value: T) -> T:
        """What the first process has."""
        if self.count == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()
