"""Running a model up to its blocks: the hidden states that enter them and the arguments that each block gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from bitwright.errors import WorkFailed
from bitwright.models.skeleton import materialise
from bitwright.models.structure import Structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.models.source import Source


@dataclass(frozen=True)
class BlockCall:
    """How the model calls one block: everything but the hidden states, which differ by layer in some models."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: int | str  # place of the hidden states: index in args or name in kwargs

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Hidden states [B, T, D] through a block that has its weights -> [B, T, D]."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.where, int):
            args[self.where] = hidden
        else:
            kwargs[self.where] = hidden
        out = block(*args, **kwargs)
        state: Tensor = out[0] if isinstance(out, tuple) else out
        return state


@torch.no_grad()
def record_calls(
    model: PreTrainedModel,
    source: Source,
    structure: Structure,
    ids: Tensor,
    rows: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, list[BlockCall]]:
    """Hidden states [B, T, D] that enter the first block for int64 `ids` [B, T], and one call a block.

    Blocks may be on meta: none runs. What lies outside blocks, embedding and head is materialised and stays so.
    `rows` gives rows [n, D] of the embedding for int64 ids [n]; by default those of the source, of which no others
    are read. Calls belong to this B and T: record anew for every batch, it costs little.
    """
    for name in structure.kept:
        path = name.rpartition(".")[0]
        materialise(model.get_submodule(path), source, path)
    pick = rows or _rows(source, structure)
    recorders = [_Recorder(model.get_submodule(block.path), structure.arity) for block in structure.blocks]
    with _replaced(model, structure, recorders), _few_rows(model.get_submodule(structure.embedding), ids, pick):
        model.base_model(input_ids=ids, use_cache=False)
    first = recorders[0].hidden
    assert first is not None
    return first, [recorder.call for recorder in recorders if recorder.call is not None]


@torch.no_grad()
def head_inputs(model: PreTrainedModel, source: Source, structure: Structure, hidden: Tensor) -> Tensor:
    """Inputs [B, T, D] of the head for hidden states [B, T, D] that left the last block.

    `record_calls` came first: what lies outside blocks, embedding and head has its weights.
    """
    assert structure.head is not None
    found: list[Tensor] = []

    def arrived(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])
        raise _Arrived

    blocks = [_Source(model.get_submodule(block.path), structure.arity, hidden) for block in structure.blocks]
    ids = torch.zeros(hidden.shape[:2], dtype=torch.int64)  # any: the blocks do not listen
    hook = model.get_submodule(structure.head).register_forward_pre_hook(arrived)
    embedding = model.get_submodule(structure.embedding)
    try:
        with _replaced(model, structure, blocks), _few_rows(embedding, ids, _rows(source, structure)):
            model(input_ids=ids, use_cache=False)
    except _Arrived:
        return found[0]
    finally:
        hook.remove()
    raise WorkFailed("the model ran without calling its head: its structure was misread.")


def same_arguments(one: list[BlockCall], other: list[BlockCall]) -> bool:
    """Whether blocks are called alike, so that the calls of one batch serve for another of its size."""

    def tensors(calls: list[BlockCall]) -> list[Tensor]:
        leaves = tree_flatten([(call.args, call.kwargs) for call in calls])[0]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    pairs = list(zip(tensors(one), tensors(other), strict=False))
    return len(tensors(one)) == len(tensors(other)) and all(torch.equal(a, b) for a, b in pairs)


def _rows(source: Source, structure: Structure) -> Callable[[Tensor], Tensor]:
    return lambda wanted: source.rows(f"{structure.embedding}.weight", wanted).float()


class _Arrived(Exception):
    """The run came to the head; nothing after it is needed."""


class _Standing(nn.Module):
    """Stands for a block: attributes are those of the block."""

    def __init__(self, block: nn.Module, arity: int | None, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.__dict__.update(block=block, arity=arity, call=None, hidden=hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def _out(self) -> Any:
        hidden, arity = self.__dict__["hidden"], self.__dict__["arity"]
        return hidden if arity is None else (hidden, *[None] * (arity - 1))


class _Source(_Standing):
    """Returns the same hidden states, whatever comes in."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._out()


class _Recorder(_Standing):
    """Keeps how it is called and hands on its input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        where, hidden = next((place, value) for place, value in named if isinstance(value, Tensor))
        kept_args = tuple(None if place == where else value for place, value in enumerate(args))
        kept = {name: None if name == where else value for name, value in kwargs.items()}
        self.__dict__.update(call=BlockCall(kept_args, kept, where), hidden=hidden)
        return self._out()


@contextmanager
def _replaced(model: nn.Module, structure: Structure, standing: Sequence[_Standing]) -> Iterator[None]:
    """The model with others in place of its blocks."""
    blocks = model.get_submodule(structure.blocks[0].path.rpartition(".")[0])
    assert isinstance(blocks, nn.ModuleList)
    real = list(blocks)
    for i, other in enumerate(standing):
        blocks[i] = other
    try:
        yield
    finally:
        for i, block in enumerate(real):
            blocks[i] = block


@contextmanager
def _few_rows(embedding: nn.Module, ids: Tensor, rows: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The embedding with a matrix of just the rows that `ids` need; its own forward (scaling, ...) still runs."""
    assert isinstance(embedding, nn.Embedding)
    wanted = torch.unique(ids)
    weight, padding = embedding.weight, embedding.padding_idx
    embedding.weight = nn.Parameter(rows(wanted), requires_grad=False)
    embedding.padding_idx = None  # matters to training alone, and would lie outside the few rows
    hook = embedding.register_forward_pre_hook(lambda _, args: (torch.searchsorted(wanted, args[0]), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
        embedding.weight, embedding.padding_idx = weight, padding
