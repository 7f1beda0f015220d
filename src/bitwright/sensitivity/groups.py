"""What really happens to the model when a group of linears is stored in a format: all else stays float.

A group is one kind of linear in a third of the blocks: few enough to measure all of them in minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bitwright.protocols import Format, Solver
from bitwright.sensitivity.perturb import Text, divergence
from bitwright.sensitivity.statistics import Statistics, kind_of, matrices, weight_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from bitwright.models.structure import Structure

PARTS = 3  # of the stack of blocks


def group_of(relative: str, index: int, blocks: int) -> str:
    """The group of a linear, by its path inside the block and the index of the block."""
    return f"{relative}, part {index * PARTS // blocks + 1} of {PARTS}"


def measure(
    model: PreTrainedModel,
    structure: Structure,
    statistics: Statistics,
    solver: Solver,
    fmt: Format,
    text: Text,
    done: Callable[[str], bool],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, float]]:
    """Group and KL divergence, nats a token, for every group that is not `done`."""
    blocks = structure.blocks
    members: dict[str, list[tuple[int, str]]] = {}
    for index, block in enumerate(blocks):
        for name in matrices(block):
            members.setdefault(group_of(kind_of(name, block), index, len(blocks)), []).append((index, name))
    todo = [group for group in members if not done(group)]
    for place, group in enumerate(todo):
        progress(place, len(todo))
        before: dict[str, Tensor] = {}
        for index, name in members[group]:
            weight = weight_of(model, name)
            hessian = next(h for seen, h in statistics.waves(index, blocks[index]) if name in seen)
            before[name] = weight.clone()
            weight.copy_(solver.solve(before[name], fmt, hessian).dequantize())
        yield group, divergence(model, text)
        for name, old in before.items():
            weight_of(model, name).copy_(old)
