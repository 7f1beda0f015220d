"""What transforms change of a block that is stored as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitwright.block_task import BlockTask, Transform


@torch.no_grad()
def transformed(task: BlockTask, transforms: Sequence[Transform]) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Apply transforms in order: the parameters that they changed and that stay floats, as they are stored; and
    (transform, linear) where one had to leave the inputs as they are."""
    before = {name: task.module.get_parameter(name).clone() for name in task.types} if transforms else {}
    left = [(each.kind, name) for each in transforms for name in each.apply(task)]
    changed = {}
    for name, old in before.items():
        parameter = task.module.get_parameter(name)
        if not torch.equal(parameter, old):
            changed[name] = parameter.to(task.types[name])
            parameter.copy_(changed[name])
    return changed, left
