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
        seen, turns = observe(model, waves, [block.path for block in blocks], ids, progress=progress)
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, block in enumerate(blocks):
            tensors: dict[str, Tensor] = {}
            for wave in block.waves:
                first = f"{block.path}.{wave[0]}"
                gram = seen[first].gram
                tensors[f"{first}.gram"], tensors[f"{first}.energy"] = gram.sum, torch.tensor([gram.energy]).double()
                for name in (f"{block.path}.{name}" for name in wave):
                    tensors |= {f"{name}.guided": seen[name].guided, f"{name}.gradient": seen[name].gradient}
            save_block(self.folder / f"{index:05}.safetensors", tensors)
        told = {
            "tokens": ids.numel(),
            "lim": [-turn.cosine / turn.tokens for turn in turns],
            "zd": [zd([model.get_submodule(f"{b.path}.{n}").weight for n in b.linears]) for b in blocks],
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
        return found


def zd(weights: list[Tensor]) -> float:
    """Share of all these weights more than one standard deviation above their mean (ZD)."""
    flat = torch.cat([w.detach().flatten() for w in weights]).double()
    return float((flat > flat.mean() + flat.std(correction=0)).double().mean())
