"""What every transform owes for every family: the same function, in each block and in the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.block_task import BlockTask, Transform
from bitwright.formats.integer import Integer
from bitwright.models.calls import record_calls
from bitwright.models.skeleton import materialise, skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.registry import load, names
from bitwright.runtime.load import load_float
from bitwright.spec import from_spec, to_spec
from bitwright.transforms._sites import sites

# What is left as it is: products with routed experts beside, layers behind GELU.
WITHOUT = {"gpt-neox": {"mlp.dense_4h_to_h"}}
IDS = torch.randint(0, 200, (4, 40), generator=torch.Generator().manual_seed(0))


def every_transform() -> list[Transform]:
    return [transform for name in names("transforms") for transform in load("transforms", name).EXAMPLES]


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3", "gpt-neox", "opt", "mixtral"])
def folder(request: pytest.FixtureRequest, families: Callable[[str], Path], tmp_path_factory: Any) -> Path:
    """A model with norms and biases that do something."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(families(request.param), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1)
    path: Path = tmp_path_factory.mktemp("case") / request.param
    model.save_pretrained(path)
    return path


def tasks(folder: Path, stored: torch.dtype = torch.float32) -> dict[str, BlockTask]:
    """By the path of the block."""
    source = open_source(str(folder))
    model = skeleton(source.config)
    structure = infer(model)
    hidden, calls = record_calls(model, source, structure, IDS)
    few, short = record_calls(model, source, structure, IDS[:, :8].contiguous())
    found = {}
    for block, long_call, short_call in zip(structure.blocks, calls, short, strict=True):
        module = model.get_submodule(block.path)
        materialise(module, source, block.path)

        def run(x: torch.Tensor, module: nn.Module = module, calls: Any = (long_call, short_call)) -> torch.Tensor:
            with torch.no_grad():
                return calls[x.shape[1] == 8].run(module, x)

        formats = {name: Integer(3, 32) for name in block.linears}
        types = {n: stored for n, _ in module.named_parameters() if n.removesuffix(".weight") not in formats}
        probe = torch.randn(few.shape, generator=torch.Generator().manual_seed(0))
        found[block.path] = BlockTask(module, block.waves, formats, types, run, [hidden], probe, map)
        hidden = run(hidden)
    return found


def parameters(task: BlockTask) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in task.module.named_parameters()}


@pytest.mark.parametrize("transform", every_transform(), ids=repr)
def test_blocks_and_model_compute_the_same(folder: Path, transform: Transform) -> None:
    model = load_float(str(folder))
    with torch.no_grad():
        expected = model(IDS).logits
        changed: set[str] = set()
        for path, task in tasks(folder).items():
            before, output = parameters(task), task.run(task.batches[0])
            left = transform.apply(task)
            assert (task.run(task.batches[0]) - output).abs().max() < 2e-5 * output.abs().max()
            moved = {name for name, value in parameters(task).items() if not torch.equal(value, before[name])}
            assert set(left) < set(task.formats)
            changed |= moved
            model.get_submodule(path).load_state_dict(task.module.state_dict())
        assert changed
        assert (model(IDS).logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("transform", every_transform(), ids=repr)
def test_spec_round_trip_and_the_same_result_twice(folder: Path, transform: Transform) -> None:
    assert from_spec(to_spec(transform)) == transform
    results = []
    for _ in range(2):
        task = next(iter(tasks(folder).values()))
        with torch.no_grad():
            transform.apply(task)
        results.append(parameters(task))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_every_wave_finds_its_producer(folder: Path) -> None:
    """Norms of both kinds, values under grouped queries, fused projections, gated and ReLU layers."""
    for task in tasks(folder).values():
        with torch.no_grad():
            found = dict(sites(task))
        assert {wave[0] for wave, site in found.items() if site is None} == WITHOUT.get(folder.name, set())
        gains = {site.plus for site in found.values() if site is not None and site.plus is not None}
        assert gains == ({1.0} if folder.name == "gemma3" else {0.0})


def test_norms_stored_in_few_bits_still_fold_exactly(folder: Path) -> None:
    """The linears take up what rounding the norm leaves; biases alone are rounded."""
    transform = load("transforms", "awq").EXAMPLES[0]
    for task in tasks(folder, torch.bfloat16).values():
        with torch.no_grad():
            for name in task.types:
                parameter = task.module.get_parameter(name)
                parameter.copy_(parameter.bfloat16())
            output = task.run(task.batches[0])
            transform.apply(task)
            for name, kind in task.types.items():
                parameter = task.module.get_parameter(name)
                if name.endswith("weight"):
                    assert torch.equal(parameter, parameter.to(kind).float())
                parameter.copy_(parameter.to(kind))
            close = 2e-5 if folder.name not in ("opt", "gpt-neox") else 1e-2
            assert (task.run(task.batches[0]) - output).abs().max() < close * output.abs().max()
