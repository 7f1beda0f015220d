"""Weights stored in blocks, block by block: in which order a file holds them, and what a beginning of it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitwright.artifact.header import Entry
from bitwright.artifact.layout import Quantization
from bitwright.artifact.plan import formats
from bitwright.errors import BadArtifact
from bitwright.protocols import Elastic, Format
from bitwright.spec import to_spec


@dataclass(frozen=True)
class Step:
    """One block of one weight behind its first: the names of its tensors."""

    weight: str
    block: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """A step in a file: it takes the bytes from `start` to `stop`."""

    step: Step
    start: int
    stop: int


def levels(quantization: Quantization) -> tuple[Step, ...]:
    """All steps, the second blocks of all weights first; none where no weight has blocks."""
    known = formats(quantization)
    elastic = [(w, fmt) for w in quantization.weights if isinstance(fmt := known[w.format], Elastic)]
    most = max((fmt.blocks for _, fmt in elastic), default=0)
    return tuple(
        Step(w.name, block, tuple(f"{w.name}.{role}" for role in added(fmt, block, w.matrix)))
        for block in range(1, most)
        for w, fmt in elastic
        if block < fmt.blocks
    )


def added(fmt: Elastic, block: int, shape: tuple[int, int]) -> tuple[str, ...]:
    """The planes that a block has beside those of the blocks before it."""
    before = fmt.prefix(block).planes(shape)
    return tuple(role for role in fmt.prefix(block + 1).planes(shape) if role not in before)


def placed(entries: Mapping[str, Entry], quantization: Quantization, where: str) -> tuple[int, tuple[Placed, ...]]:
    """Where the part that every prefix needs ends, and the steps behind it in file order.

    `entries` fill the file in their order. `BadArtifact` where a step begins before that part or the one it builds on
    is complete, or another tensor lies inside it: then no beginning of the file is a model.
    """
    owner = {name: step for step in levels(quantization) for name in step.tensors}
    if not owner:
        raise BadArtifact(
            f"{where} holds no weights in blocks, so no part of it is a model: make one with bit-stack "
            "or double-rounding."
        )
    names = list(entries)
    base = next(i for i, name in enumerate(names) if name in owner)
    reached: dict[str, int] = {}
    found = []
    rest = iter(names[base:])
    for name in rest:
        step = owner.get(name)
        whole = None if step is None else {name, *_next(rest, len(step.tensors) - 1)}
        if step is None or whole != set(step.tensors) or step.block != reached.get(step.weight, 0) + 1:
            raise BadArtifact(
                f"{where}: {name!r} lies where a beginning of the file cannot use it, so it cannot be read in part: "
                "leave the budget out, or quantize the model again."
            )
        reached[step.weight] = step.block
        last = max((entries[tensor] for tensor in whole or ()), key=lambda entry: entry.start)
        found.append(Placed(step, entries[name].start, last.start + last.spec.bytes))
    return entries[names[base]].start, tuple(found)


def _next(names: Iterator[str], count: int) -> list[str]:
    return [name for _, name in zip(range(count), names, strict=False)]


def beginning(
    quantization: Quantization, known: Sequence[Format], blocks: Mapping[str, int]
) -> tuple[Quantization, tuple[Format, ...]]:
    """The same weights with only the first of their blocks, as many as `blocks` says of each; and the formats."""
    own: dict[str, Format] = {}
    for w in quantization.weights:
        fmt = known[w.format]
        own[w.name] = fmt.prefix(blocks[w.name]) if isinstance(fmt, Elastic) else fmt
    distinct = tuple(dict.fromkeys(own.values()))
    weights = tuple(w.model_copy(update={"format": distinct.index(own[w.name])}) for w in quantization.weights)
    specs = tuple(to_spec(fmt) for fmt in distinct)
    return quantization.model_copy(update={"formats": specs, "weights": weights}), distinct
