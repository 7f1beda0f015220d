"""The steps of a distillation: sequences side by side on single threads, sums in a fixed order, so that the bytes
do not depend on how many threads there were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.engine.workers import Workers
from bitwright.errors import WorkFailed
from bitwright.learning import Learning
from bitwright.tune.loss import divergence, needs_teacher, objective
from bitwright.tune.student import Matrix, Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Trainer:
    """A student under way. `dtype` is that of the factors of products."""

    teacher: PreTrainedModel
    student: Student
    learning: Learning
    workers: Workers
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.matrices = self.student.all
        self.parameters: list[nn.Parameter] = list({id(m.parameter): m.parameter for m in self.matrices}.values())
        self.vectors = list(self.student.vectors.parameters.values())
        self.show()

    def show(self) -> None:
        """Give the model the stored values of everything."""
        self.student.vectors.show()
        for _ in self.workers.map(Matrix.show, self.matrices):
            pass

    def encode(self) -> None:
        """Choose all codes anew."""
        for _ in self.workers.map(lambda matrix: matrix.weight.encode(), self.matrices):
            pass
        self.show()

    def divergence(self, ids: Tensor) -> float:
        """Mean divergence from the float model on sequences int64 [S, T], nats a token."""

        def one(row: Tensor) -> Tensor:
            given, wanted = self._outputs(row, teach=True, hidden=False)
            return divergence(given.logits[0], wanted.logits[0])

        return float(torch.stack(list(self.workers.map(one, list(ids)))).mean())

    def step(self, ids: Tensor, factor: float, number: int) -> float:
        """One update from sequences int64 [S, T] with all rates times `factor`; the mean loss before it."""
        leaves = [*self.parameters, *self.vectors]

        def gradients(row: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            with torch.enable_grad():
                loss = self._loss(row)
                found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            return loss.detach(), found

        losses, found = zip(*self.workers.map(gradients, list(ids)), strict=True)
        loss = float(torch.stack(losses).mean())
        if not loss < float("inf"):
            raise WorkFailed(f"the loss is not finite at step {number}: give smaller rates, --set rate=0.0005 say.")
        self._update(found, factor, number)
        return loss

    def forget(self) -> None:
        """Undo steps at rate 0: what gradients were seen."""
        for moved in (self.student.vectors.moved, *(matrix.weight.moved for matrix in self.matrices)):
            moved.forget()

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on."""
        found = {f"vectors|{key}": value for key, value in self.student.vectors.moved.state().items()}
        for i, matrix in enumerate(self.matrices):
            found |= {f"{i}|{key}": value for key, value in matrix.weight.state().items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            part, _, key = name.partition("|")
            parts.setdefault(part, {})[key] = value
        self.student.vectors.moved.restore(parts["vectors"])
        for i, matrix in enumerate(self.matrices):
            matrix.weight.restore(parts[str(i)])
        self.show()

    def _update(self, found: tuple[tuple[Tensor, ...], ...], factor: float, number: int) -> None:
        """Move everything along the mean over sequences; gradients are in the order of parameters, then vectors."""
        at = {id(parameter): i for i, parameter in enumerate(self.parameters)}

        def one(item: tuple[int, Matrix]) -> None:
            index, matrix = item
            parts = [own[at[id(matrix.parameter)]] for own in found]
            matrix.weight.update(_mean([p if matrix.expert is None else p[matrix.expert] for p in parts]), factor)
            if index % self.learning.encode_every == number % self.learning.encode_every:
                matrix.weight.encode()
            matrix.show()

        for _ in self.workers.map(one, enumerate(self.matrices)):
            pass
        names = self.student.vectors.parameters
        means = [_mean(list(parts)) for parts in zip(*(own[len(self.parameters) :] for own in found), strict=True)]
        self.student.vectors.moved.step(dict(zip(names, means, strict=True)), factor)
        self.student.vectors.show()

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


def _mean(parts: list[Tensor]) -> Tensor:
    """Float32, summed in order."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
