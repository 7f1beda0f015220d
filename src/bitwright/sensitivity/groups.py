"""What really happens to the model when a group of linears is stored in a format: all else stays float.

A group is one kind of linear in a third of the blocks: few enough to measure all of them in minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bitwright.protocols import Format, Solver
from bitwright.sensitivity.perturb import Text, divergence
from bitwright.sensitivity.statistics import Statistics

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
    members: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        for name in block.linears:
            members.setdefault(group_of(name, index, len(blocks)), []).append(index)
    todo = [group for group in members if not done(group)]
    for place, group in enumerate(todo):
        progress(place, len(todo))
        relative = group.partition(",")[0]
        before: dict[str, Tensor] = {}
        for index in members[group]:
            name = f"{blocks[index].path}.{relative}"
            weight = model.get_submodule(name).weight
            hessian = next(h for seen, h in statistics.waves(index, blocks[index]) if name in seen)
            before[name] = weight.detach().clone()
            weight.data.copy_(solver.solve(before[name], fmt, hessian).dequantize())
        yield group, divergence(model, text)
        for name, old in before.items():
            model.get_submodule(name).weight.data.copy_(old)
