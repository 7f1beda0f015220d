"""Which block of which weight comes next in a file that may be read in part, and how good its beginnings are.

A block gains what it lowers the predicted KL divergence by: the Fisher information of the float model gives what the
rest of a weight costs behind each of its blocks. One probe a group of linears (one kind in a third of the blocks)
corrects that: the divergence of the whole model with only this group cut to its first blocks, over what was predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.allocate.ordering import order
from bitwright.artifact.layout import Calibration, ElasticRow, Point
from bitwright.artifact.steps import Step
from bitwright.engine.journal import Journal
from bitwright.engine.plan import Plan
from bitwright.engine.workers import Workers
from bitwright.models.cache import cache_folder
from bitwright.protocols import Elastic, QTensor
from bitwright.runtime.elastic import ElasticModel
from bitwright.runtime.load import load_float
from bitwright.sensitivity import table as tables
from bitwright.sensitivity.groups import group_of
from bitwright.sensitivity.measure import TEXT
from bitwright.sensitivity.observe import Observed
from bitwright.sensitivity.perturb import Text, divergence
from bitwright.sensitivity.solved import divergence as predicted
from bitwright.sensitivity.statistics import Statistics
from bitwright.spec import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

    Progress = Callable[[str, int, int], None]

PROBED = 2  # blocks that a probe leaves: with one, a group alone may ruin the model, and nothing adds up
POINTS = 12  # of the curve, at even distances in bytes


@dataclass
class Ranking:
    """A finished quantization whose blocks are to be put in order; `tensor` gives its planes, `ids` int64 [S, T]."""

    source: Source
    structure: Structure
    plan: Plan
    journal: Journal
    tensor: Callable[[str], Tensor]
    ids: Tensor
    calibration: Calibration
    progress: Progress

    def steps(self, workers: Workers) -> tuple[Step, ...]:
        """The steps of the plan, the most gain a byte first."""
        losses = self._losses(workers)
        scale = self._corrections(losses, workers)
        of = {(step.weight, step.block): step for step in self.plan.contents.steps}
        names = list(losses)
        rated = [[loss * scale[self._groups[name]] for loss in losses[name]] for name in names]
        return tuple(of[names[item], step + 1] for item, step in order(rated, list(map(self._sizes, names))))

    def curve(self, folder: Path, workers: Workers) -> ElasticRow:
        """KL divergence of beginnings of the written file, from the smallest to all of it."""
        text = self._text
        self.__dict__.pop("_float", None)  # as large as everything else together
        model, points = ElasticModel(folder), []
        first, last = model.prefix.smallest, model.bytes
        for i in range(POINTS):
            self.progress("measuring the curve", i, POINTS)
            model.resize(first + (last - first) * i // (POINTS - 1))
            points.append(Point(bytes=model.bytes, kl=_divergence(model.model, text, workers)))
        return ElasticRow(tokens=sum(len(logs) for logs in text.logs), curve=tuple(points))

    @cached_property
    def _float(self) -> PreTrainedModel:
        return load_float(self.source.name)

    @cached_property
    def _text(self) -> Text:
        return Text.of(self._float, self.ids, TEXT)

    @cached_property
    def _groups(self) -> dict[str, str]:
        """The group of every linear that is stored in blocks."""
        blocks = self.structure.blocks
        return {
            path: group_of(name, index, len(blocks))
            for index, block in enumerate(blocks)
            for name in block.linears
            if isinstance(self.plan.formats.get(path := f"{block.path}.{name}"), Elastic)
        }

    def _weight(self, name: str, blocks: int) -> Tensor:
        """The weight of its first blocks, float32 [R, C]."""
        fmt = self.plan.formats[name]
        assert isinstance(fmt, Elastic)
        rows, columns = self.source.shape(f"{name}.weight")
        part = fmt.prefix(blocks)
        planes = {role: self.tensor(f"{name}.{role}") for role in part.planes((rows, columns))}
        return QTensor(part, (rows, columns), planes).dequantize()

    def _sizes(self, name: str) -> list[int]:
        """Bytes of its first 1, 2, ... blocks."""
        fmt = self.plan.formats[name]
        assert isinstance(fmt, Elastic)
        rows, columns = self.source.shape(f"{name}.weight")
        return [fmt.prefix(count).bits((rows, columns)).bytes for count in range(1, fmt.blocks + 1)]

    def _losses(self, workers: Workers) -> dict[str, list[float]]:
        """Predicted divergence of each linear alone behind 1, 2, ... of its blocks."""
        statistics = self._statistics()
        found: dict[str, list[float]] = {}
        blocks = self.structure.blocks
        for index, block in enumerate(blocks):
            self.progress("rating blocks", index, len(blocks))
            entry = f"losses-{index:05}"
            if self.journal.get(entry) is None:
                seen = {name: own for wave, _ in statistics.waves(index, block) for name, own in wave.items()}
                names = [name for name in seen if name in self._groups]
                rated = workers.map(partial(self._rated, seen), names)
                own = dict(zip(names, rated, strict=True))
                self.journal.put(entry, {}, {"losses": own})
            found |= self.journal.notes(entry)["losses"]
        return {name: found[name] for name in self._groups}

    def _rated(self, seen: dict[str, Observed], name: str) -> list[float]:
        fmt, w = self.plan.formats[name], self.source.tensor(f"{name}.weight").float()
        assert isinstance(fmt, Elastic)
        return [predicted(self._weight(name, count) - w, seen[name]) for count in range(1, fmt.blocks + 1)]

    def _statistics(self) -> Statistics:
        """Of the float model; those that an allocation on the same text has measured are used again."""
        observation = tables.observation(self.source.digest(), f"{self.calibration.sha256}-{len(self.ids)}")
        statistics = Statistics(cache_folder() / "sensitivity" / f"{fingerprint(observation)[:24]}-statistics")
        if not statistics.there:
            step = partial(self.progress, "measuring sensitivity")
            statistics.gather(self._float, self.structure, self.ids, step)
        return statistics

    def _corrections(self, losses: dict[str, list[float]], workers: Workers) -> dict[str, float]:
        """Measured over predicted divergence of every group behind `PROBED` blocks."""
        members: dict[str, list[str]] = {}
        for name, group in self._groups.items():
            members.setdefault(group, []).append(name)
        found: dict[str, float] = {}
        for done, (group, names) in enumerate(members.items()):
            self.progress("probing groups", done, len(members))
            entry = f"probe-{done:05}"
            if self.journal.get(entry) is None:
                self.journal.put(entry, {}, {"divergence": self._probe(names, workers)})
            expected = sum(losses[name][min(PROBED, len(losses[name])) - 1] for name in names)
            found[group] = float(self.journal.notes(entry)["divergence"]) / max(expected, 1e-30)
        return found

    @torch.no_grad()
    def _probe(self, names: list[str], workers: Workers) -> float:
        """KL divergence of the float model with these weights cut to `PROBED` blocks."""
        weights = {name: self._float.get_submodule(name).weight for name in names}
        text = self._text  # of the model as it is now
        before = {name: w.clone() for name, w in weights.items()}
        for name, w in weights.items():
            fmt = self.plan.formats[name]
            assert isinstance(fmt, Elastic)
            w.copy_(self._weight(name, min(PROBED, fmt.blocks)))
        found = _divergence(self._float, text, workers)
        for name, w in weights.items():
            w.copy_(before[name])
        return found


def _divergence(model: PreTrainedModel, text: Text, workers: Workers) -> float:
    """Of all sequences, one beside the other: threads inside one would change its last bits."""
    parts = [Text((ids,), (logs,)) for ids, logs in zip(text.ids, text.logs, strict=True)]
    found = list(workers.map(partial(divergence, model), parts))
    return sum(kl * len(logs) for kl, logs in zip(found, text.logs, strict=True)) / sum(map(len, text.logs))
