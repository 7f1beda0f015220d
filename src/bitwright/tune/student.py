"""The two models of a distillation: the float one that is followed, and the packed one as trainable float weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitwright.artifact.layout import expert_of
from bitwright.errors import BadField, Refused, WorkFailed
from bitwright.groups import per_column
from bitwright.latent import Moved, TunedWeight, computed
from bitwright.learning import Learning
from bitwright.models.skeleton import materialise, skeleton
from bitwright.protocols import Adaptive, Format
from bitwright.runtime.install import place
from bitwright.tune import attention
from bitwright.tune.mixed import MixedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.artifact.layout import Weight
    from bitwright.artifact.read import Artifact
    from bitwright.engine.workers import Workers
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure


def _owner(model: nn.Module, weight: Weight) -> nn.Module | None:
    """The module whose weight it is; None for a stack of experts."""
    return model.get_submodule(weight.name) if len(weight.shape) == 2 else None


def teacher(source: Source, structure: Structure, dtype: torch.dtype) -> PreTrainedModel:
    """The float model, with the linears of its blocks and the head in `dtype`."""
    model = skeleton(source.config)
    attention.use(model)
    materialise(model, source, "")
    for block in structure.blocks:
        for name in (*(f"{name}.weight" for name in block.linears), *(experts.name for experts in block.experts)):
            parameter = model.get_parameter(f"{block.path}.{name}")
            parameter.data = parameter.data.to(dtype)
    _head_in(model, dtype)
    return model


def _head_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the head, which does not learn, the type of products: else every product would convert it anew.

    Where it is the embedding too, that keeps its own.
    """
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().to(dtype), requires_grad=False)


@dataclass
class Matrix:
    """One matrix of the student (of a stack of experts: one expert): how it is stored, and where the model reads it."""

    weight: TunedWeight
    parameters: tuple[nn.Parameter, ...]
    expert: int | None

    def show(self) -> None:
        """Put what the weight computes with where the model does."""
        for parameter, value in zip(self.parameters, self.weight.values(), strict=True):
            place = parameter.data if self.expert is None else parameter.data[self.expert]
            place.copy_(value)


@dataclass
class Vectors:
    """Norms and biases, which are stored as floats; the model computes with their stored values."""

    moved: Moved
    parameters: dict[str, nn.Parameter]
    types: dict[str, torch.dtype]

    def show(self) -> None:
        """Put the rounded values in the model."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.stored(name))

    def stored(self, name: str) -> Tensor:
        """As written to the file."""
        return self.moved.tensors[name].to(self.types[name])


class Student:
    """The model of an artifact, its block weights and vectors trainable; embedding and head are as stored."""

    def __init__(
        self,
        artifact: Artifact,
        source: Source,
        learning: Learning,
        dtype: torch.dtype,
        workers: Workers,
        owned: Callable[[int], bool] = lambda index: True,
    ) -> None:
        """`owned` says of which weights this process has the latent values; the others are only multiplied by."""
        if learning.memory and artifact.manifest is not None and artifact.manifest.recipe.spec.get("transforms"):
            raise Refused("the weights were transformed before they were quantized and have no original: memory=false.")
        self.model = skeleton(source.config)
        attention.use(self.model)
        self.parameters: dict[str, tuple[nn.Parameter, ...]] = {}  # what each weight computes with
        self.matrices: dict[str, list[Matrix]] = {}  # of those owned; one, or one an expert
        for name in artifact.kept:
            place(self.model, name, artifact.tensor(name))
        self.model.tie_weights()
        table = self.model.get_input_embeddings()
        fixed = {id(table), id(self.model.get_output_embeddings())} - {id(None)}
        for weight in artifact.weights():
            if expert_of(weight.name):
                raise Refused(
                    f"{weight.name} has a format of its own in its stack of experts: tuning needs one for all."
                )
            owner = _owner(self.model, weight)
            if owner is not None and id(owner) in fixed:
                owner.weight = nn.Parameter(artifact.qtensor(weight.name).dequantize(), requires_grad=False)
            else:
                parameters = self._parameters(weight, artifact.formats[weight.format], dtype)
                if owned(len(self.parameters)):
                    self.matrices[weight.name] = _matrices(artifact, source, weight, learning, parameters, workers)
                self.parameters[weight.name] = parameters
        for head, table_name in artifact.quantization.tied:
            self.model.get_submodule(head).weight = self.model.get_submodule(table_name).weight
        _head_in(self.model, dtype)
        self.vectors = self._vectors(artifact, learning)
        known = {name for own in self.matrices.values() for matrix in own for name in matrix.weight.fixed}
        unknown = [name for name in learning.frozen if name not in known]
        if self.matrices and unknown:
            raise BadField(learning, "frozen", ", ".join(unknown), f"the formats here have {', '.join(sorted(known))}")

    def _parameters(self, weight: Weight, fmt: Format, dtype: torch.dtype) -> tuple[nn.Parameter, ...]:
        parameter = nn.Parameter(torch.empty(weight.shape, dtype=dtype))
        stacked = len(weight.shape) == 3
        path, _, leaf = weight.name.rpartition(".")
        setattr(self.model.get_submodule(path if stacked else weight.name), leaf if stacked else "weight", parameter)
        if not isinstance(fmt, Adaptive) or stacked:
            return (parameter,)
        linear = self.model.get_submodule(weight.name)
        assert isinstance(linear, nn.Linear)
        mixed = MixedLinear(linear, len(fmt.mixed) // 3)
        setattr(self.model.get_submodule(path), leaf, mixed)
        return parameter, mixed.router, mixed.inputs, mixed.outputs

    def _vectors(self, artifact: Artifact, learning: Learning) -> Vectors:
        parameters = dict(self.model.named_parameters())
        names = [name for name in artifact.kept if name in parameters and parameters[name].dim() == 1]
        chosen = {name: parameters[name].requires_grad_() for name in names}
        types = {name: artifact.tensor(name).dtype for name in names}
        moved = Moved({name: p.data for name, p in chosen.items()}, dict.fromkeys(names, learning.vector_rate))
        return Vectors(moved, chosen, types)

    def planes(self) -> dict[str, Tensor]:
        """What is stored of everything that is trained here, by full name."""
        found: dict[str, Tensor] = {name: self.vectors.stored(name) for name in self.vectors.parameters}
        for name, matrices in self.matrices.items():
            each = [matrix.weight.planes() for matrix in matrices]
            for role in each[0]:
                stacked = matrices[0].expert is not None
                found[f"{name}.{role}"] = torch.stack([p[role] for p in each]) if stacked else each[0][role]
        return found

    def same(self, artifact: Artifact) -> None:
        """`WorkFailed` unless an artifact decodes to exactly what the model was trained with."""
        for name, parameters in self.parameters.items():
            stacked = parameters[0].dim() == 3
            for i in range(len(parameters[0]) if stacked else 1):
                q = artifact.qtensor(name, i)
                codes, params = q.format.unpack(q.planes, q.shape)
                found = computed(q.format, codes, per_column(params, q.format.group, q.shape[1]))
                for parameter, value in zip(parameters, found, strict=True):
                    trained = parameter.data[i] if stacked else parameter.data
                    if not torch.equal(value.to(trained.dtype), trained):
                        raise WorkFailed(f"{name} was written with other values than it was trained with.")
        for name, parameter in self.vectors.parameters.items():
            if not torch.equal(artifact.tensor(name).to(parameter.dtype), parameter.data):
                raise WorkFailed(f"{name} was written with other values than it was trained with.")


def _matrices(
    artifact: Artifact,
    source: Source,
    weight: Weight,
    learning: Learning,
    parameters: tuple[nn.Parameter, ...],
    workers: Workers,
) -> list[Matrix]:
    stacked = len(weight.shape) == 3
    original = source.tensor(weight.name if stacked else f"{weight.name}.weight") if learning.memory else None

    def tuned(expert: int) -> TunedWeight:
        towards = original if original is None or not stacked else original[expert]
        return TunedWeight(artifact.qtensor(weight.name, expert), towards, learning)

    found = workers.map(tuned, range(weight.experts))
    return [Matrix(w, parameters, e if stacked else None) for e, w in enumerate(found)]
