"""The loop over blocks: a float model in, a packed folder out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bitwright.artifact.layout import expert_name
from bitwright.block_task import BlockTask
from bitwright.calibrate.drift import made_up
from bitwright.calibrate.observe import expert_grams, expert_hessians, gram, hessian
from bitwright.calibrate.routing import second_choices
from bitwright.engine.journal import Journal
from bitwright.engine.original import Original, Through
from bitwright.engine.plan import Plan
from bitwright.engine.tables import head_is_solved
from bitwright.engine.transformed import transformed
from bitwright.engine.workers import Workers, quick_products
from bitwright.errors import WorkFailed
from bitwright.linalg import Hessian
from bitwright.models.skeleton import materialise, release
from bitwright.protocols import Format, QTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.models.calls import BlockCall
    from bitwright.models.source import Source
    from bitwright.models.structure import Block, Structure

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # what, done, of


class Probe(NamedTuple):
    """A few random hidden states [S, T, D] for transforms, and how the model calls each block for so many."""

    hidden: Tensor
    calls: list[BlockCall]


@dataclass
class Run:
    """One quantization under way. `hidden` [S, T, D] are the inputs of the next block, from quantized blocks before."""

    plan: Plan
    source: Source
    structure: Structure
    model: PreTrainedModel
    journal: Journal
    workers: Workers
    batch: int
    progress: Progress
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: dict[int, list[BlockCall]] = field(default_factory=dict)  # by number of sequences: how each block is called
    probe: Probe = field(default_factory=lambda: Probe(torch.empty(0), []))
    targets: Tensor | None = None  # [S, T, D], room for the outputs of a float block, for refiners
    original: Original | None = None  # where weights make up for what their inputs have lost
    unseen: list[str] = field(default_factory=list)  # experts that calibration never reached
    skipping: dict[str, float] = field(default_factory=dict)  # see `Manifest`
    left: list[tuple[str, str]] = field(default_factory=list)  # (transform, linear): it left its inputs as they are

    def blocks(self) -> None:
        """Quantize every block that the journal does not hold, replay the others."""
        count = len(self.structure.blocks)
        for index, part in enumerate(self.structure.blocks):
            self.progress("blocks", index, count)
            block = self.model.get_submodule(part.path)
            materialise(block, self.source, part.path)
            if self.original is not None:
                self.original.enter(block)
            entry = block_part(index)
            done = self.journal.get(entry)
            if done is None:
                self.journal.put(entry, *self._solve_block(index, part, block))
            elif self.plan.recipe.propagate:
                self._replay(part, block, done)
            if done is None and not self.plan.recipe.propagate:  # go on with what the source has
                release(block)
                materialise(block, self.source, part.path)
            self.unseen += self.journal.notes(entry)["unseen"]
            self.skipping |= self.journal.notes(entry)["skipping"]
            self.left += [(kind, name) for kind, name in self.journal.notes(entry)["left"]]
            if (index + 1 < count or head_is_solved(self.plan, self.structure)) and len(self.hidden):
                self._advance(index, block)
            release(block)
        self.progress("blocks", count, count)

    def _solve_block(self, index: int, part: Block, block: nn.Module) -> tuple[dict[str, Tensor], dict[str, object]]:
        task, refiner = self._task(index, part, block), self.plan.recipe.refiner
        changed, left = transformed(task, self.plan.recipe.transforms)
        if self.original is not None and self.plan.recipe.transforms:
            self.original.transform(block)
        tensors = {f"{part.path}.{name}": value for name, value in changed.items()}
        floats = {name: block.get_parameter(f"{name}.weight") for name in task.formats}
        targets = [] if refiner is None else self._outputs(task)
        packed: dict[str, QTensor] = {}
        errors: dict[str, float] = {}
        unseen: list[str] = []
        for wave in part.waves:
            layers = {name: block.get_submodule(name) for name in wave if name in task.formats}
            for name, (q, error) in self._solve_wave(index, part, block, layers).items():
                packed[name], errors[f"{part.path}.{name}"] = q, error
        skipping = self._skipping(index, part, block)
        for experts in part.experts:
            name = f"{part.path}.{experts.name}"
            formats = self.plan.expert_formats(name, experts.shape[0])
            if formats is not None:
                solved, missing = self._solve_experts(index, block, experts.name, name, formats)
                tensors |= self._expert_planes(name, solved)
                unseen += missing
        if refiner is not None and packed:
            packed = refiner.refine(task, packed, floats, targets)
        tensors |= {f"{part.path}.{name}.{role}": p for name, q in packed.items() for role, p in q.planes.items()}
        told = [(kind, f"{part.path}.{name}") for kind, name in left]
        return tensors, {"errors": errors, "unseen": unseen, "left": told, "skipping": skipping}

    def _task(self, index: int, part: Block, block: nn.Module) -> BlockTask:
        """The block as transforms and refiners see it."""
        hidden, calls = self.probe

        def run(batch: Tensor) -> Tensor:
            return (calls if batch is hidden else self.calls[len(batch)])[index].run(block, batch)

        formats = {name: fmt for name in part.linears if (fmt := self.plan.formats.get(f"{part.path}.{name}"))}
        types = {name: self.plan.contents.kept[f"{part.path}.{name}"].dtype for name in self._kept(part, block)}
        return BlockTask(block, part.waves, formats, types, run, self.batches(), hidden, self.workers.map)

    def _outputs(self, task: BlockTask) -> list[Tensor]:
        """What a block makes of each batch, in the mapped file for it."""
        assert self.targets is not None
        pieces = [self.targets[start : start + self.batch] for start in range(0, len(self.targets), self.batch)]
        for piece, out in zip(pieces, self.workers.map(task.run, task.batches), strict=True):
            piece.copy_(out)
        return pieces

    def _kept(self, part: Block, block: nn.Module) -> list[str]:
        """Parameters of a block that are stored as they are, by their names inside it."""
        return [name for name, _ in block.named_parameters() if f"{part.path}.{name}" in self.plan.contents.kept]

    def _solve_wave(
        self, index: int, part: Block, block: nn.Module, layers: dict[str, nn.Module]
    ) -> dict[str, tuple[QTensor, float]]:
        """Solve the layers that share an input, and put the decoded weights in their place if the recipe propagates."""
        if not layers:
            return {}
        statistics, moved = self._observe(index, part, block, next(iter(layers)))

        def solve(item: tuple[str, nn.Module]) -> tuple[QTensor, float]:
            name, layer = item
            path, w, target = f"{part.path}.{name}", layer.get_parameter("weight"), None
            if statistics is not None and moved is not None:
                target = made_up(w, moved, statistics, self.plan.recipe.drift)
            return self._solve(path, w, self.plan.formats[path], statistics, target)

        found = dict(zip(layers, self.workers.map(solve, layers.items()), strict=True))
        if self.plan.recipe.propagate:
            for name, layer in layers.items():
                layer.weight = nn.Parameter(found[name][0].dequantize(), requires_grad=False)
        return found

    def _observe(self, index: int, part: Block, block: nn.Module, name: str) -> tuple[Hessian | None, Tensor | None]:
        """Of the inputs of a linear: their Hessian, and how they drifted where weights make up for that."""
        if not self.plan.recipe.solver.needs_hessian:
            return None, None
        path, batches, map = f"{part.path}.{name}", self.batches(), self.workers.map
        with quick_products():
            if self.original is not None:
                return self.original.observe(self._through(index), block, name, batches, map, path)
            run, layer = self._runner(index, block), block.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            return hessian(map(lambda batch: gram(run, layer, batch), batches), path), None

    def _solve(
        self, name: str, w: Tensor, fmt: Format, statistics: Hessian | None, target: Tensor | None = None
    ) -> tuple[QTensor, float]:
        """The packed weight and its output error relative to the output (to the weight, without statistics).

        `target`: the weight that the codes are to be near to, if it is another one.
        """
        q = self.plan.recipe.solver.solve(w if target is None else target, fmt, statistics)
        decoded = q.dequantize()
        if not bool(decoded.isfinite().all()):
            raise WorkFailed(f"quantizing {name} gave non-finite weights: raise solver.damping.")
        if statistics is None:
            return q, float((decoded - w).square().sum() / w.square().sum().clamp(min=1e-30))
        return q, statistics.error(decoded - w) / max(statistics.error(w), 1e-30)

    def _skipping(self, index: int, part: Block, block: nn.Module) -> dict[str, float]:
        """Median over tokens of the second expert's routing weight over the first's; nothing without a router."""
        if part.router is None or not len(self.hidden):
            return {}
        run, router = self._runner(index, block), block.get_parameter(part.router)
        seen = self.workers.map(lambda batch: second_choices(run, router, batch), self.batches())
        return {f"{part.path}.{part.mixture}": float(torch.cat(list(seen)).median())}

    def _expert_planes(self, name: str, solved: list[QTensor]) -> dict[str, Tensor]:
        """Of a stack, in one piece where all experts have one format."""
        if name in self.plan.formats:
            return {f"{name}.{role}": torch.stack([q.planes[role] for q in solved]) for role in solved[0].planes}
        return {f"{expert_name(name, e)}.{k}": plane for e, q in enumerate(solved) for k, plane in q.planes.items()}

    def _solve_experts(
        self, index: int, block: nn.Module, relative: str, name: str, formats: list[Format]
    ) -> tuple[list[QTensor], list[str]]:
        stack = block.get_parameter(relative)
        statistics: dict[int, Hessian | None] = {}
        if self.plan.recipe.solver.needs_hessian:
            run, affinity = self._runner(index, block), self.plan.recipe.affinity
            with quick_products():
                seen = self.workers.map(lambda batch: expert_grams(run, stack, batch, affinity), self.batches())
                statistics = expert_hessians(seen, stack.shape[0], name)
        missing = [f"{name}[{e}]" for e, h in statistics.items() if h is None]
        for label in missing:
            log.warning("%s saw no calibration token: solved from its weights alone", label)

        def solve(e: int) -> QTensor:
            return self._solve(f"{name}[{e}]", stack[e], formats[e], statistics.get(e))[0]

        solved = list(self.workers.map(solve, range(stack.shape[0])))
        if self.plan.recipe.propagate:
            stack.copy_(torch.stack([q.dequantize() for q in solved]))
        return solved, missing

    def _replay(self, part: Block, block: nn.Module, done: dict[str, Tensor]) -> None:
        """Put the weights of a finished block back in place."""

        def planes(name: str) -> dict[str, Tensor]:
            lead = f"{part.path}.{name}."
            return {key.removeprefix(lead): plane for key, plane in done.items() if key.startswith(lead)}

        for name in self._kept(part, block):
            if (stored := done.get(f"{part.path}.{name}")) is not None:
                block.get_parameter(name).copy_(stored)
        for name in part.linears:
            layer, fmt = block.get_submodule(name), self.plan.formats.get(f"{part.path}.{name}")
            if fmt is not None:
                assert isinstance(layer, nn.Linear)
                q = QTensor(fmt, (layer.out_features, layer.in_features), planes(name))
                layer.weight = nn.Parameter(q.dequantize(), requires_grad=False)
        for experts in part.experts:
            stack, name = block.get_parameter(experts.name), f"{part.path}.{experts.name}"
            for e, fmt in enumerate(self.plan.expert_formats(name, experts.shape[0]) or ()):
                if name in self.plan.formats:
                    own = {role: plane[e] for role, plane in planes(experts.name).items()}
                else:
                    own = planes(expert_name(experts.name, e))
                stack[e] = QTensor(fmt, experts.shape[1:], own).dequantize()

    def _advance(self, index: int, block: nn.Module) -> None:
        """Outputs of the block as it is now become the inputs of the next."""
        with quick_products():
            if self.original is not None:
                self.original.advance(self._through(index), self.workers.map)
            outputs = self.workers.map(self._runner(index, block), self.batches())
            for batch, out in zip(self.batches(), outputs, strict=True):
                if not bool(out.isfinite().all()):
                    raise WorkFailed(f"block {index} gives non-finite outputs on the calibration text.")
                batch.copy_(out)

    def _runner(self, index: int, block: nn.Module) -> Callable[[Tensor], Tensor]:
        return partial(self._through(index), block)

    def _through(self, index: int) -> Through:
        return lambda block, batch: self.calls[len(batch)][index].run(block, batch)

    def batches(self) -> list[Tensor]:
        """Views of `hidden` that run through a block together."""
        return [self.hidden[start : start + self.batch] for start in range(0, len(self.hidden), self.batch)]


def block_part(index: int) -> str:
    """The journal's name of a block."""
    return f"block-{index:05}"
