"""What scales of AWQ and SmoothQuant and rotations of heads do to weights and activations, on one small block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitwright.block_task import BlockTask
from bitwright.errors import BadField
from bitwright.formats.integer import Integer
from bitwright.solvers.rtn import Rtn
from bitwright.transforms.awq import Awq
from bitwright.transforms.hadamard import Hadamard
from bitwright.transforms.smoothquant import SmoothQuant

WIDTH, LOUD = 64, 7  # channel LOUD of the input is 30 times as loud as the others


class Block(nn.Module):
    """A norm, two linears of one wave, and one behind that takes what the second makes as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.first(x).sum(-1, keepdim=True).tanh() + self.third(self.second(x))


@pytest.fixture
def task() -> BlockTask:
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    block.norm.weight[LOUD] = 30.0
    formats = dict.fromkeys(("first", "second", "third"), Integer(3, 64))
    types = {n: torch.float32 for n, _ in block.named_parameters() if n.removesuffix(".weight") not in formats}
    waves = (("first", "second"), ("third",))
    return BlockTask(block, waves, formats, types, block, [torch.randn(4, 50, WIDTH)], torch.randn(4, 8, WIDTH), map)


def error(task: BlockTask, before: Tensor) -> float:
    """Of the block's output with its linears rounded."""
    for name, fmt in task.formats.items():
        layer = task.module.get_submodule(name)
        layer.weight = nn.Parameter(Rtn().solve(layer.weight, fmt, None).dequantize(), requires_grad=False)
    return float((task.run(task.batches[0]) - before).square().mean())


def test_awq_protects_what_is_loud(task: BlockTask) -> None:
    before = task.run(task.batches[0])
    weight = task.module.get_parameter("second.weight").clone()
    kept = {name: p.clone() for name, p in task.module.named_parameters()}
    plain = error(task, before)
    for name, value in kept.items():
        task.module.get_submodule(name.rpartition(".")[0]).get_parameter(name.rpartition(".")[2]).copy_(value)
    assert Awq().apply(task) == []
    grown = (task.module.get_parameter("second.weight") / weight).abs().median(0).values
    assert int(grown.argmax()) == LOUD
    assert error(task, before) < 0.7 * plain


def test_smoothquant_makes_ranges_equal(task: BlockTask) -> None:
    task.module.get_parameter("norm.weight")[LOUD] = 3.0  # no token is massive
    assert SmoothQuant(0.5).apply(task) == ["third"]
    activations = task.module.get_submodule("norm")(task.batches[0]).abs().amax((0, 1))
    weights = torch.cat([task.module.get_parameter(f"{name}.weight") for name in ("first", "second")]).abs().amax(0)
    assert (weights / activations - 1).abs().max() < 1e-3


def test_hadamard_spreads_an_outlier_over_its_run(task: BlockTask) -> None:
    task.module.get_parameter("third.weight")[:, 5] *= 100
    assert set(Hadamard(16).apply(task)) == {"first", "second"}
    columns = task.module.get_parameter("third.weight").square().mean(0)
    assert float(columns[:16].max()) < 2 * float(columns[:16].min())
    assert float(columns[16:].max()) < 0.01 * float(columns[:16].min())


def test_a_longer_run_is_preferred(task: BlockTask) -> None:
    task.module.get_parameter("third.weight")[:, 5] *= 100
    Hadamard().apply(task)
    columns = task.module.get_parameter("third.weight").square().mean(0)
    assert float(columns.max()) < 2 * float(columns.min())


@pytest.mark.parametrize(
    ("part", "wrong"),
    [(Awq, {"steps": 0}), (Awq, {"rows": 0}), (SmoothQuant, {"alpha": 1.5}), (Hadamard, {"longest": 24})],
)
def test_wrong_settings(part: type, wrong: dict[str, float]) -> None:
    with pytest.raises(BadField):
        part(**wrong)
