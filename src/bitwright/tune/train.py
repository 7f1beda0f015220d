"""The steps of a distillation: sequences side by side on single threads, sums in a fixed order, so that the bytes
do not depend on how many threads there were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.engine.workers import Workers
from bitwright.errors import WorkFailed
from bitwright.learning import Learning
from bitwright.tune.loss import divergence, needs_teacher, objective
from bitwright.tune.ranks import Ranks
from bitwright.tune.student import Matrix, Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Trainer:
    """A student under way, in one process or in several that share its matrices. `dtype` is that of the factors of
    products."""

    teacher: PreTrainedModel
    student: Student
    learning: Learning
    workers: Workers
    dtype: torch.dtype
    ranks: Ranks

    def __post_init__(self) -> None:
        self.parameters = list(self.student.parameters.values())  # of each weight what it computes with
        self.leaves = [parameter for own in self.parameters for parameter in own]
        self.vectors = list(self.student.vectors.parameters.values())
        self.matrices: list[tuple[int, Matrix]] = []  # of this process; numbers are alike for all numbers of processes
        number = 0
        for name, parameters in self.student.parameters.items():
            self.matrices += enumerate(self.student.matrices.get(name, ()), number)
            number += _count(parameters)
        self.show()

    def show(self) -> None:
        """Give the model the stored values of everything."""
        self.student.vectors.show()
        for _ in self.workers.map(lambda matrix: matrix[1].show(), self.matrices):
            pass
        self._spread()

    def _spread(self) -> None:
        """Give all processes what the owner of each weight has."""
        for index, parameters in enumerate(self.parameters):
            for parameter in parameters:
                self.ranks.spread(parameter.data, self.ranks.owner(index))

    def encode(self) -> None:
        """Choose all codes anew."""
        for _ in self.workers.map(lambda matrix: matrix[1].weight.encode(), self.matrices):
            pass
        self.show()

    def divergence(self, ids: Tensor) -> float:
        """Mean divergence from the float model on sequences int64 [S, T], nats a token."""

        def one(row: Tensor) -> Tensor:
            given, wanted = self._outputs(row, teach=True, hidden=False)
            return divergence(given.logits[0], wanted.logits[0])

        return float(torch.stack(self.ranks.joined(list(self.workers.map(one, self.ranks.share(list(ids)))))).mean())

    def step(self, ids: Tensor, factor: float, number: int) -> float:
        """One update from sequences int64 [S, T] with all rates times `factor`; the mean loss before it."""
        leaves = [*self.leaves, *self.vectors]

        def gradients(row: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            with torch.enable_grad():
                loss = self._loss(row)
                found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            return loss.detach(), found

        losses, found = zip(*self.workers.map(gradients, self.ranks.share(list(ids))), strict=True)
        loss = float(torch.stack(self.ranks.joined(list(losses))).mean())
        if not loss < float("inf"):
            raise WorkFailed(f"the loss is not finite at step {number}: give smaller rates, --set rate=0.0005 say.")
        self._update(found, factor, number)
        return loss

    def forget(self) -> None:
        """Undo steps at rate 0: what gradients were seen."""
        for moved in (self.student.vectors.moved, *(matrix.weight.moved for _, matrix in self.matrices)):
            moved.forget()

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps of this process depend on."""
        found = {f"vectors|{key}": value for key, value in self.student.vectors.moved.state().items()}
        for i, matrix in self.matrices:
            found |= {f"{i}|{key}": value for key, value in matrix.weight.state().items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            part, _, key = name.partition("|")
            parts.setdefault(part, {})[key] = value
        self.student.vectors.moved.restore(parts["vectors"])
        for i, matrix in self.matrices:
            matrix.weight.restore(parts[str(i)])
        self.show()

    def _update(self, found: tuple[tuple[Tensor, ...], ...], factor: float, number: int) -> None:
        """Move everything along the mean over sequences; gradients are in the order of parameters, then vectors."""

        def one(item: tuple[int, Matrix, list[list[Tensor]]]) -> None:
            index, matrix, every = item
            means = [_mean([p if matrix.expert is None else p[matrix.expert] for p in parts]) for parts in every]
            matrix.weight.update(means, factor)
            if index % self.learning.encode_every == number % self.learning.encode_every:
                matrix.weight.encode()
            matrix.show()

        for _ in self.workers.map(one, self._gradients(found)):
            pass
        self._spread()
        vectors = self.ranks.joined([own[len(self.leaves) :] for own in found])
        means = [_mean(parts) for parts in zip(*vectors, strict=True)]
        self.student.vectors.moved.step(dict(zip(self.student.vectors.parameters, means, strict=True)), factor)
        self.student.vectors.show()

    def _gradients(self, found: tuple[tuple[Tensor, ...], ...]) -> Iterator[tuple[int, Matrix, list[list[Tensor]]]]:
        """The matrices of this process, each with the gradients of what it computes with, of all sequences of all."""
        matrices, leaf = iter(self.matrices), 0
        for index, parameters in enumerate(self.parameters):
            every: list[list[Tensor]] = []
            for _ in parameters:
                parts = self.ranks.collected([own[leaf] for own in found], self.ranks.owner(index))
                every += [] if parts is None else [parts]
                leaf += 1
            if every:
                for number, matrix in islice(matrices, _count(parameters)):
                    yield number, matrix, every

    def _loss(self, row: Tensor) -> Tensor:
        given, wanted = self._outputs(row, needs_teacher(self.learning), hidden=self.learning.hidden > 0)
        return objective(given, wanted, row, self.learning)

    def _outputs(self, row: Tensor, teach: bool, hidden: bool) -> tuple[Any, Any]:
        """What the student and, if asked, the teacher make of a sequence int64 [T]."""
        asked = {"input_ids": row[None], "use_cache": False, "output_hidden_states": hidden}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            with torch.no_grad():
                wanted = self.teacher(**asked) if teach else None
            return self.student.model(**asked), wanted


def _count(parameters: Sequence[Tensor]) -> int:
    """Matrices in a weight: the experts of a stack, or one."""
    return len(parameters[0]) if parameters[0].dim() == 3 else 1


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """Float32, summed in order."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
