"""Filling a table: statistics of the float model, then one block after the other, then embedding and head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from bitwright.artifact.layout import expert_of
from bitwright.calibrate.observe import Gram, hessian
from bitwright.linalg import Hessian
from bitwright.protocols import Format, Solver
from bitwright.runtime.load import load_float
from bitwright.sensitivity import table as tables
from bitwright.sensitivity.experts import significances
from bitwright.sensitivity.groups import group_of, measure
from bitwright.sensitivity.observe import Observed
from bitwright.sensitivity.perturb import Text, divergence
from bitwright.sensitivity.solved import Losses, losses
from bitwright.sensitivity.statistics import Statistics, expert_names, kind_of, matrices
from bitwright.sensitivity.table import Table, key
from bitwright.solvers.rtn import Rtn
from bitwright.spec import fingerprint, to_spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    embedding_solver: Solver | None
    folder: Path
    map: Map
    progress: Progress

    def table(
        self,
        formats: Sequence[Format],
        of_tables: Sequence[Format],
        calibration: str,
        reference: Format | None = None,
        whole_experts: bool = False,
    ) -> Table:
        """The table with the losses of these formats for linears and for embedding and head.

        With a `reference` among the formats, groups of linears in it are also measured on the whole model; with
        `whole_experts`, what each expert does to its block.
        """
        solvers = to_spec((self.solver, self.embedding_solver))
        identity = tables.identity(self.source.digest(), calibration, solvers)
        path, table = tables.open_table(self.folder, identity)
        observation = fingerprint(tables.observation(self.source.digest(), calibration))
        statistics = Statistics(self.folder / f"{observation[:24]}-statistics")
        self._linears(path, table, formats, statistics)
        if whole_experts:
            self._experts(path, table, formats)
        self._tables(path, table, [fmt for fmt in of_tables if key(fmt) not in table.tables])
        if reference is not None:
            self._groups(path, table, reference, statistics)
        return table

    def _linears(self, path: Path, table: Table, formats: Sequence[Format], statistics: Statistics) -> None:
        blocks = self.structure.blocks

        def missing(index: int) -> list[Format]:
            rows = [table.tensors.get(name) for name in matrices(blocks[index])]
            return [fmt for fmt in formats if any(row is None or key(fmt) not in row.options for row in rows)]

        todo = [index for index in range(len(blocks)) if missing(index)]
        if todo:
            self._gather(statistics)
            table.lim, table.zd = statistics.told["lim"], statistics.told["zd"]
        for done, index in enumerate(todo):
            self.progress("trying formats", done, len(todo))
            self._block(table, index, missing(index), statistics)
            table.save(path)

    def _gather(self, statistics: Statistics) -> None:
        if not statistics.there:
            model = load_float(self.source.name)
            statistics.gather(model, self.structure, self.ids, partial(self.progress, "measuring sensitivity"))

    def _block(self, table: Table, index: int, formats: list[Format], statistics: Statistics) -> None:
        block = self.structure.blocks[index]

        def solve(wave: tuple[dict[str, Observed], Hessian]) -> dict[str, list[Losses]]:
            seen, curvature = wave
            weights = {name: self._weight(name).float() for name in seen}
            upper = curvature.factor(0.01).diagonal().float()
            for name, w in weights.items():
                group = group_of(kind_of(name, block), index, len(self.structure.blocks))
                scores = _trace(seen[name]), _curvature(w, upper), seen[name].share
                row = tables.Tensor(index, group, w.numel(), *scores)
                table.tensors.setdefault(name, row)
            return losses(weights, seen, curvature, formats, self.solver)

        for found in self.map(solve, statistics.waves(index, block)):
            for name, values in found.items():
                table.tensors[name].options.update(zip(map(key, formats), values, strict=True))

    def _experts(self, path: Path, table: Table, formats: Sequence[Format]) -> None:
        names = [name for block in self.structure.blocks for own in expert_names(block) for name in own]
        if names and all(key(fmt) in table.tensors[name].whole for name in names for fmt in formats):
            return
        model, step = load_float(self.source.name), partial(self.progress, "measuring experts")
        for own, share, changes in significances(model, self.structure, formats, self.ids, step):
            for name in own:
                row = table.tensors[name]
                row.significance = share
                # Shared out over the matrices of the expert, which are chosen for together.
                row.whole |= {key(fmt): change / len(own) for fmt, change in zip(formats, changes, strict=True)}
        table.save(path)

    def _weight(self, name: str) -> Tensor:
        part = expert_of(name)
        return self.source.tensor(f"{name}.weight") if part is None else self.source.tensor(part[0])[part[1]]

    def _groups(self, path: Path, table: Table, fmt: Format, statistics: Statistics) -> None:
        own = table.measured.setdefault(key(fmt), {})
        if {row.group for row in table.tensors.values()} <= own.keys():
            return
        self._gather(statistics)
        model = load_float(self.source.name)
        text = Text.of(model, self.ids, TEXT)
        step = partial(self.progress, "measuring groups")
        for group, kl in measure(model, self.structure, statistics, self.solver, fmt, text, own.__contains__, step):
            own[group] = kl
            table.save(path)

    def _tables(self, path: Path, table: Table, formats: list[Format]) -> None:
        """KL of the whole model with only embedding and head in a format, solved as the engine solves them."""
        if not formats:
            return
        model = load_float(self.source.name)
        names = dict.fromkeys([self.structure.embedding, self.structure.head or self.structure.embedding])
        matrices = {id(p): p for p in (model.get_submodule(name).weight for name in names)}
        originals = {place: p.detach().clone() for place, p in matrices.items()}
        text = Text.of(model, self.ids, TEXT)
        solver = self.embedding_solver or Rtn()
        head = _head_hessian(model, self.ids[len(text.ids) :]) if solver.needs_hessian else None
        multiplied = id(model.get_output_embeddings().weight) if head is not None else None
        for done, fmt in enumerate(formats):
            self.progress("trying formats of the embedding", done, len(formats))
            for place, p in matrices.items():
                solve = partial(_solved, solver, fmt, head if place == multiplied else None)
                p.data.copy_(torch.cat(list(self.map(solve, originals[place].split(STRIP)))))
            table.tables[key(fmt)] = divergence(model, text)
            table.save(path)


@torch.no_grad()
def _head_hessian(model: PreTrainedModel, ids: Tensor) -> Hessian | None:
    """Of the inputs of the head on other text than that on which losses are measured; None without head or text."""
    grams: list[Gram] = []
    head = model.get_output_embeddings()
    if head is None:
        return None
    hook = head.register_forward_pre_hook(lambda _, args: grams.append(Gram.of(args[0])))
    for row in ids:
        model(row[None], use_cache=False)
    hook.remove()
    return hessian(grams, "the head")


def _solved(solver: Solver, fmt: Format, statistics: Hessian | None, w: Tensor) -> Tensor:
    return solver.solve(w, fmt, statistics).dequantize()


def _trace(seen: Observed) -> float:
    """Of the Fisher information of the weight: mean of |g|^2 |x|^2."""
    return float(seen.guided.diagonal().sum(dtype=torch.float64)) / seen.gram.tokens


def _curvature(w: Tensor, upper: Tensor) -> float:
    reach = (w.amax(1) - w.amin(1)).double()
    return float(reach.square().sum() * (1 / upper.double().square()).sum() / 24)
