"""Statistics of the float model on disk: a file a block, mapped when it is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.artifact.layout import expert_name, expert_of
from bitwright.artifact.read import load_block
from bitwright.artifact.write import save_block, write_text
from bitwright.calibrate.observe import Gram, hessian
from bitwright.linalg import Hessian
from bitwright.sensitivity.observe import Observed, observe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.models.structure import Block, Structure


@dataclass(frozen=True)
class Statistics:
    """A folder with one file a block, and `done.json`, which is written last and makes them count."""

    folder: Path

    @property
    def there(self) -> bool:
        """Whether the pass over the model was finished."""
        return (self.folder / "done.json").exists()

    @cached_property
    def told(self) -> dict[str, Any]:
        """`tokens`, and `lim` and `zd` of every block."""
        found: dict[str, Any] = json.loads((self.folder / "done.json").read_text())
        return found

    def gather(
        self, model: PreTrainedModel, structure: Structure, ids: Tensor, progress: Callable[[int, int], None]
    ) -> None:
        """One pass of the float model over `ids` [S, T]."""
        blocks = structure.blocks
        waves = [tuple(f"{block.path}.{name}" for name in wave) for block in blocks for wave in block.waves]
        stacks = [f"{block.path}.{experts.name}" for block in blocks for experts in block.experts]
        paths = [block.path for block in blocks]
        seen, turns = observe(model, waves, paths, ids, progress=progress, stacks=stacks)
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, block in enumerate(blocks):
            tensors: dict[str, Tensor] = {}
            for wave in block.waves:
                first = f"{block.path}.{wave[0]}"
                gram = seen[first].gram
                tensors[f"{first}.gram"], tensors[f"{first}.energy"] = gram.sum, torch.tensor([gram.energy]).double()
                for name in (f"{block.path}.{name}" for name in wave):
                    tensors |= {f"{name}.guided": seen[name].guided, f"{name}.gradient": seen[name].gradient}
            for name in (name for names in expert_names(block) for name in names):
                own = seen[name]
                tensors |= {
                    f"{name}.gram": own.gram.sum,
                    f"{name}.guided": own.guided,
                    f"{name}.gradient": own.gradient,
                }
                tensors[f"{name}.energy"] = torch.tensor([own.gram.energy, own.share]).double()
            save_block(self.folder / f"{index:05}.safetensors", tensors)
        told = {
            "tokens": ids.numel(),
            "lim": [-turn.cosine / turn.tokens for turn in turns],
            "zd": [zd(_weights(model, block)) for block in blocks],
        }
        write_text(self.folder / "done.json", json.dumps(told))

    def waves(self, index: int, block: Block) -> list[tuple[dict[str, Observed], Hessian]]:
        """What was seen of the linears of each wave, by path, and the Hessian that they share."""
        stored, tokens = load_block(self.folder / f"{index:05}.safetensors"), self.told["tokens"]
        found = []
        for wave in block.waves:
            names = [f"{block.path}.{name}" for name in wave]
            gram = Gram(stored[f"{names[0]}.gram"], tokens, float(stored[f"{names[0]}.energy"]))
            curvature = hessian([gram], names[0])
            assert curvature is not None
            seen = {n: Observed(gram, stored[f"{n}.guided"], stored[f"{n}.gradient"]) for n in names}
            found.append((seen, curvature))
        for names in expert_names(block):
            found += _smoothed({name: _expert(stored, name, tokens) for name in names})
        return found


def _expert(stored: dict[str, Tensor], name: str, tokens: int) -> Observed:
    energy, share = stored[f"{name}.energy"].tolist()
    # Sums over the tokens that reached the expert count per token of the text, so that experts compare.
    gram = Gram(stored[f"{name}.gram"], tokens, energy)
    return Observed(gram, stored[f"{name}.guided"], stored[f"{name}.gradient"], share)


def _smoothed(experts: dict[str, Observed]) -> list[tuple[dict[str, Observed], Hessian]]:
    """Each as if one more token had reached it, the mean of those that reached any: rare experts cost something."""
    tokens = next(iter(experts.values())).gram.tokens
    reached = max(sum(own.share for own in experts.values()) * tokens, 1.0)

    def mean(of: Callable[[Observed], Tensor]) -> Tensor:
        return torch.stack([of(own) for own in experts.values()]).sum(0) / reached

    gram, guided, gradient = mean(lambda o: o.gram.sum), mean(lambda o: o.guided), mean(lambda o: o.gradient)
    energy = sum(own.gram.energy for own in experts.values()) / reached
    found = []
    for name, own in experts.items():
        total = Gram(own.gram.sum + gram, tokens, own.gram.energy + energy)
        curvature = hessian([total], name)
        assert curvature is not None
        seen = {name: Observed(total, own.guided + guided, own.gradient + gradient, own.share)}
        found.append((seen, curvature))
    return found


def expert_names(block: Block) -> list[list[str]]:
    """Paths of the experts of a block, a list for each stack."""
    return [[expert_name(f"{block.path}.{e.name}", i) for i in range(e.shape[0])] for e in block.experts]


def matrices(block: Block) -> list[str]:
    """Paths of everything in a block that can have a format of its own."""
    linears = [f"{block.path}.{name}" for name in block.linears]
    return linears + [name for names in expert_names(block) for name in names]


def kind_of(name: str, block: Block) -> str:
    """Of a linear or an expert, inside its block."""
    stack, _ = expert_of(name) or (name, None)
    return stack.removeprefix(f"{block.path}.")


def weight_of(model: PreTrainedModel, name: str) -> Tensor:
    """The values [R, C] of a linear or an expert, in the memory of the model."""
    part = expert_of(name)
    if part is None:
        weight: Tensor = model.get_submodule(name).weight.data
        return weight
    expert: Tensor = model.get_parameter(part[0]).data[part[1]]
    return expert


def _weights(model: PreTrainedModel, block: Block) -> list[Tensor]:
    return [weight_of(model, name) for name in matrices(block)]


def zd(weights: list[Tensor]) -> float:
    """Share of all these weights more than one standard deviation above their mean (ZD)."""
    flat = torch.cat([w.detach().flatten() for w in weights]).double()
    return float((flat > flat.mean() + flat.std(correction=0)).double().mean())
