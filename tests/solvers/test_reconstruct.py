"""Learning a block's codes and scales on its output: never worse, within reach, whatever the format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.block_task import BlockTask
from bitwright.errors import BadField
from bitwright.formats.integer import Integer
from bitwright.protocols import Format, QTensor
from bitwright.registry import load, names
from bitwright.solvers.reconstruct import LOSSES, Reconstruct
from bitwright.solvers.rtn import Rtn

WIDTH = 96


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


class Block(nn.Module):
    """Two linears with something between them that no layer-wise error knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 64, bias=False), nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.up(x)))


def problem(fmt: Format) -> tuple[BlockTask, dict[str, QTensor], dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    batches = [torch.randn(n, 16, WIDTH) @ (torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for n in (4, 2)]
    task = BlockTask(block, (("up",), ("down",)), {"up": fmt, "down": fmt}, {}, block, batches, batches[0], map)
    floats = {name: block.get_submodule(name).weight for name in task.formats}
    targets = [block(x) for x in batches]
    return task, {name: Rtn().solve(w, fmt, None) for name, w in floats.items()}, floats, targets


def loss(task: BlockTask, packed: dict[str, QTensor], targets: list[Tensor], kind: str = "squared") -> float:
    for name, q in packed.items():
        task.module.get_submodule(name).weight = nn.Parameter(q.dequantize(), requires_grad=False)
    return sum(
        float(LOSSES[kind](task.run(x[i : i + 1]), y[i : i + 1]))
        for x, y in zip(task.batches, targets, strict=True)
        for i in range(len(x))
    )


@pytest.mark.parametrize("fmt", every_format(), ids=repr)
def test_never_worse_and_what_is_left_in_the_block_is_what_is_packed(fmt: Format) -> None:
    task, packed, floats, targets = problem(fmt)
    found = Reconstruct(steps=2).refine(task, packed, floats, targets)
    for name, q in found.items():
        assert fmt.flaw(q.planes, q.shape) is None
        assert torch.equal(task.module.get_submodule(name).weight, q.dequantize())
    assert loss(task, found, targets) <= loss(task, packed, targets)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", LOSSES)
def test_learned_rounding_lowers_the_loss_and_moves_no_code_by_more_than_one(signed: bool, kind: str) -> None:
    task, packed, floats, targets = problem(Integer(3, 32, search=10))
    solver = Reconstruct(steps=40, parameter_reach=0.0, signed=signed, loss=kind)
    found = solver.refine(task, packed, floats, targets)
    assert loss(task, found, targets, kind) < 0.8 * loss(task, packed, targets, kind)
    for name, q in found.items():
        codes, before = (x.format.unpack(x.planes, x.shape) for x in (q, packed[name]))
        assert torch.equal(codes[1]["scale"], before[1]["scale"])
        assert int((codes[0] - before[0]).abs().max()) == 1


def test_ranges_alone_lower_the_loss_too() -> None:
    task, packed, floats, targets = problem(Integer(2, 32))
    found = Reconstruct(steps=40, reach=0.0, parameter_reach=0.2, signed=False).refine(task, packed, floats, targets)
    assert loss(task, found, targets) < 0.9 * loss(task, packed, targets)


def test_without_reach_nothing_moves_and_the_seed_decides_the_rest() -> None:
    def learned(**fields: Any) -> dict[str, QTensor]:
        return replace(Reconstruct(steps=30, batch=1), **fields).refine(*problem(Integer(3, 32)))

    still, start = learned(reach=0.0, parameter_reach=0.0), problem(Integer(3, 32))[1]
    assert all(torch.equal(still[name].dequantize(), q.dequantize()) for name, q in start.items())
    one, same, other = learned(), learned(), learned(seed=1)
    assert all(torch.equal(one[name].dequantize(), q.dequantize()) for name, q in same.items())
    assert not all(torch.equal(one[name].dequantize(), q.dequantize()) for name, q in other.items())


@pytest.mark.parametrize("wrong", [{"loss": "cubic"}, {"steps": 0}, {"reach": -1.0}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadField):
        Reconstruct(**wrong)
