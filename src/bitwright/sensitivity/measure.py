"""Filling a table: statistics of the float model, then one block after the other, then embedding and head."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from bitwright.artifact.read import load_block
from bitwright.artifact.write import save_block, write_text
from bitwright.calibrate.observe import Gram, hessian
from bitwright.protocols import Format, Solver
from bitwright.runtime.load import load_float
from bitwright.sensitivity import table as tables
from bitwright.sensitivity.observe import Observed, observe
from bitwright.sensitivity.perturb import Text, divergence
from bitwright.sensitivity.solved import losses
from bitwright.sensitivity.table import Table, key
from bitwright.solvers.rtn import Rtn
from bitwright.spec import fingerprint, to_spec

if TYPE_CHECKING:
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

A = TypeVar("A")
B = TypeVar("B")
Progress = Callable[[str, int, int], None]
STRIP = 4096  # rows of an embedding rounded at a time
TEXT = 1024  # tokens on which perturbations are measured


class Map(Protocol):
    """Runs independent tasks side by side; results in order."""

    def __call__(self, task: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """`task` of every item."""
        ...


@dataclass
class Bench:
    """A model to be measured, and where the numbers go."""

    source: Source
    structure: Structure
    ids: Tensor  # int64 [S, T], calibration
    solver: Solver
    folder: Path
    map: Map
    progress: Progress

    def table(self, formats: Sequence[Format], of_tables: Sequence[Format], calibration: str) -> Table:
        """The table with the losses of these formats for linears and for embedding and head."""
        identity = tables.identity(self.source.digest(), calibration, to_spec(self.solver))
        path, table = tables.open_table(self.folder, identity)
        observation = fingerprint(tables.observation(self.source.digest(), calibration))
        self._linears(path, table, list(formats), self.folder / f"{observation[:24]}-statistics")
        self._tables(path, table, [fmt for fmt in of_tables if key(fmt) not in table.tables])
        return table

    def _linears(self, path: Path, table: Table, formats: list[Format], statistics: Path) -> None:
        names = [key(fmt) for fmt in formats]
        blocks = self.structure.blocks

        def missing(index: int) -> list[Format]:
            rows = [table.tensors.get(f"{blocks[index].path}.{name}") for name in blocks[index].linears]
            return [
                f for f, n in zip(formats, names, strict=True) if any(r is None or n not in r.options for r in rows)
            ]

        todo = [index for index in range(len(blocks)) if missing(index)]
        if todo:
            self._observe(statistics)
            told = json.loads((statistics / "done.json").read_text())
            table.lim, table.zd = told["lim"], told["zd"]
        for done, index in enumerate(todo):
            self.progress("trying formats", done, len(todo))
            self._block(table, index, missing(index), statistics, told["tokens"])
            table.save(path)

    def _block(self, table: Table, index: int, formats: list[Format], statistics: Path, tokens: int) -> None:
        block, stored = self.structure.blocks[index], load_block(statistics / f"{index:05}.safetensors")

        def solve(wave: tuple[str, ...]) -> dict[str, Any]:
            names = [f"{block.path}.{name}" for name in wave]
            gram = Gram(stored[f"{names[0]}.gram"], tokens, float(stored[f"{names[0]}.energy"]))
            seen = {n: Observed(gram, stored[f"{n}.guided"], stored[f"{n}.gradient"]) for n in names}
            weights = {name: self.source.tensor(f"{name}.weight").float() for name in names}
            curvature = hessian([gram], names[0])
            assert curvature is not None
            upper = curvature.factor(0.01).diagonal().float()
            for name, w in weights.items():
                row = table.tensors.setdefault(
                    name, tables.Tensor(index, w.numel(), _trace(seen[name]), _curvature(w, upper))
                )
                assert row.weights == w.numel()
            return losses(weights, seen, formats, self.solver)

        for found in self.map(solve, block.waves):
            for name, values in found.items():
                own = zip((key(fmt) for fmt in formats), values, strict=True)
                table.tensors[name].options.update(own)

    def _observe(self, folder: Path) -> None:
        """Statistics of every block in a file each; `done.json` is written last and makes them count."""
        if (folder / "done.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        model = load_float(self.source.name)
        blocks = self.structure.blocks
        waves = [tuple(f"{block.path}.{name}" for name in wave) for block in blocks for wave in block.waves]
        seen, turns = observe(
            model,
            waves,
            [block.path for block in blocks],
            self.ids,
            progress=lambda done, of: self.progress("measuring sensitivity", done, of),
        )
        for index, block in enumerate(blocks):
            tensors: dict[str, Tensor] = {}
            for wave in block.waves:
                names = [f"{block.path}.{name}" for name in wave]
                tensors[f"{names[0]}.gram"] = seen[names[0]].gram.sum
                tensors[f"{names[0]}.energy"] = torch.tensor([seen[names[0]].gram.energy], dtype=torch.float64)
                tensors |= {f"{n}.guided": seen[n].guided for n in names}
                tensors |= {f"{n}.gradient": seen[n].gradient for n in names}
            save_block(folder / f"{index:05}.safetensors", tensors)
        told = {
            "tokens": self.ids.numel(),
            "lim": [-turn.cosine / turn.tokens for turn in turns],
            "zd": [_zd([model.get_submodule(f"{b.path}.{n}").weight for n in b.linears]) for b in blocks],
        }
        write_text(folder / "done.json", json.dumps(told))

    def _tables(self, path: Path, table: Table, formats: list[Format]) -> None:
        """KL of the whole model with only embedding and head in a format, rounded as the engine rounds them."""
        if not formats:
            return
        model = load_float(self.source.name)
        names = dict.fromkeys([self.structure.embedding, self.structure.head or self.structure.embedding])
        matrices = {id(p): p for p in (model.get_submodule(name).weight for name in names)}
        originals = {place: p.detach().clone() for place, p in matrices.items()}
        text = Text.of(model, self.ids, TEXT)
        for done, fmt in enumerate(formats):
            self.progress("trying formats of the embedding", done, len(formats))
            for place, p in matrices.items():
                p.data.copy_(torch.cat(list(self.map(partial(_rounded, fmt), originals[place].split(STRIP)))))
            table.tables[key(fmt)] = divergence(model, text)
            table.save(path)


def _rounded(fmt: Format, w: Tensor) -> Tensor:
    return Rtn().solve(w, fmt, None).dequantize()


def _trace(seen: Observed) -> float:
    """Of the Fisher information of the weight: mean of |g|^2 |x|^2."""
    return float(seen.guided.diagonal().sum(dtype=torch.float64)) / seen.gram.tokens


def _curvature(w: Tensor, upper: Tensor) -> float:
    reach = (w.amax(1) - w.amin(1)).double()
    return float(reach.square().sum() * (1 / upper.double().square()).sum() / 24)


def _zd(weights: list[Any]) -> float:
    """Share of the weights of a block more than one standard deviation above their mean (ZD)."""
    flat = torch.cat([w.detach().flatten() for w in weights]).double()
    return float((flat > flat.mean() + flat.std(correction=0)).double().mean())
