"""Text that a mixture writes itself with all experts in use: what the specification of MoEQuant asks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitwright.calibrate.balanced import RUN, balanced_samples, imbalance
from bitwright.runtime.load import load_float

EXPERTS = [("model.layers.0.mlp.experts", 4), ("model.layers.1.mlp.experts", 4)]
LENGTH = 32


def write(folder: Path, balance: float, seed: int = 0) -> Tensor:
    from transformers import AutoTokenizer

    model, tokenizer = load_float(str(folder)), AutoTokenizer.from_pretrained(folder)
    return balanced_samples(model, tokenizer, EXPERTS, balance, 3, LENGTH, seed)


@torch.inference_mode()
def uneven(folder: Path, ids: Tensor) -> float:
    """Mean imbalance of sequences, from scratch."""
    model, found = load_float(str(folder)), []
    seen: list[Tensor] = []
    hooks = [model.get_submodule(p).register_forward_pre_hook(lambda m, args: seen.append(args[1])) for p, _ in EXPERTS]
    for row in ids:
        seen.clear()
        model(row[None, :-1])
        found.append(imbalance(torch.stack([chosen.flatten().bincount(minlength=4) for chosen in seen]).float()))
    for hook in hooks:
        hook.remove()
    return float(torch.stack(found).mean())


def test_imbalance_of_counts() -> None:
    """None for equal counts; of k of E experts, sqrt((1/k - 1/E) / (1 - 1/E) / E); mean over layers."""
    assert float(imbalance(torch.full((2, 8), 5.0))) == 0
    some = torch.tensor([3.0, 3, 0, 0, 0, 0, 0, 0])
    expected = math.sqrt((1 / 2 - 1 / 8) / (1 - 1 / 8) / 8)
    assert float(imbalance(some[None])) == pytest.approx(expected)
    assert float(imbalance(torch.stack([some, torch.ones(8)]))) == pytest.approx(expected / 2)


def test_balance_evens_the_use_of_experts(mixtral: Path) -> None:
    plain, balanced = write(mixtral, 0.0), write(mixtral, 50.0)
    assert plain.shape == balanced.shape == (3, LENGTH)
    assert uneven(mixtral, balanced) < 0.8 * uneven(mixtral, plain)
    assert torch.equal(balanced, write(mixtral, 50.0))
    assert not torch.equal(balanced, write(mixtral, 50.0, seed=1))
    assert len({tuple(row.tolist()) for row in balanced}) == 3


def test_no_run_occurs_twice(mixtral: Path) -> None:
    for row in write(mixtral, 0.0):
        runs = [tuple(run.tolist()) for run in row.unfold(0, RUN, 1)]
        assert len(set(runs)) == len(runs)
