"""How much each expert matters to its block, as MC-MoE measures it (arXiv 2410.06270).

Significance is (share of the tokens' choices) x (share of the routing weight) ^ 1.5, the exponents of its released
configurations; the error of a format is the change of the mixture's output with one whole expert rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.errors import Refused
from bitwright.protocols import Format
from bitwright.sensitivity.statistics import expert_names, weight_of
from bitwright.solvers.rtn import Rtn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.models.structure import Block, Structure

ALPHA, BETA = 1.0, 1.5  # of use and of routing weight


@dataclass
class _Mixture:
    """A mixture of experts in a block: its path and router, and what went in."""

    path: str
    router: str
    inputs: list[Tensor] = field(default_factory=list)


def significances(
    model: PreTrainedModel,
    structure: Structure,
    formats: Sequence[Format],
    ids: Tensor,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[list[str], float, list[float]]]:
    """For every expert: the names of its matrices, its significance, and the change that each format makes.

    `ids` int64 [S, T]. Inputs are those of the float model; other experts and the routing stay exact.
    """
    mixtures = {index: _mixture(block) for index, block in enumerate(structure.blocks) if block.experts}
    if not mixtures:
        raise Refused("the score mc-moe is for mixtures of experts, and this model has none: choose another recipe.")
    with torch.inference_mode(), _recording(model, mixtures.values()):
        for row in ids:
            model(row[None], use_cache=False)
    for done, (index, mixture) in enumerate(mixtures.items()):
        progress(done, len(mixtures))
        block = structure.blocks[index]
        x = torch.cat(mixture.inputs, 1)
        shares = significance(*routing(model, mixture.router, x))
        for e, names in enumerate(zip(*expert_names(block), strict=True)):
            yield list(names), float(shares[e]), [_change(model, mixture, names, fmt, x) for fmt in formats]


def routing(model: PreTrainedModel, router: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Choices of each expert and summed routing probability over those, [E] each, for inputs [1, T, D]."""
    probability = (x[0] @ model.get_parameter(router).t()).float().softmax(-1)
    top = probability.topk(model.config.num_experts_per_tok, dim=-1)
    zero = torch.zeros(probability.shape[1], dtype=torch.float64)
    ones = torch.ones(top.indices.numel(), dtype=torch.float64)
    used = zero.index_add(0, top.indices.flatten(), ones)
    return used, zero.index_add(0, top.indices.flatten(), top.values.flatten().double())


def significance(used: Tensor, weight: Tensor) -> Tensor:
    """From choices and summed routing weights [E], each normalised over the block."""
    return (used / used.sum()) ** ALPHA * (weight / weight.sum()) ** BETA


def _mixture(block: Block) -> _Mixture:
    assert block.mixture is not None
    return _Mixture(f"{block.path}.{block.mixture.rpartition('.')[0]}", f"{block.path}.{block.router}")


@torch.inference_mode()
def _change(model: PreTrainedModel, mixture: _Mixture, names: Sequence[str], fmt: Format, x: Tensor) -> float:
    module = model.get_submodule(mixture.path)
    exact = _output(module, x)
    before = {name: weight_of(model, name).clone() for name in names}
    for name, w in before.items():
        weight_of(model, name).copy_(Rtn().solve(w, fmt, None).dequantize())
    change = _output(module, x) - exact
    for name, w in before.items():
        weight_of(model, name).copy_(w)
    return float(change.norm())


def _output(module: nn.Module, x: Tensor) -> Tensor:
    found: Any = module(x)
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out


@contextmanager
def _recording(model: PreTrainedModel, mixtures: Any) -> Iterator[None]:
    def recorder(mixture: _Mixture) -> Callable[..., None]:
        return lambda module, args: mixture.inputs.append(args[0].detach())

    handles = [model.get_submodule(m.path).register_forward_pre_hook(recorder(m)) for m in mixtures]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
