"""The loop over blocks: a float model in, a packed folder out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitwright.calibrate.observe import expert_grams, gram, hessian
from bitwright.engine.journal import Journal
from bitwright.engine.plan import Plan
from bitwright.engine.workers import Workers
from bitwright.errors import BadInput, WorkFailed
from bitwright.linalg import Hessian
from bitwright.models.skeleton import materialise, release
from bitwright.protocols import Format, QTensor
from bitwright.solvers.rtn import Rtn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.models.skeleton import BlockCall
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # what, done, of
STRIP = 4096  # rows of an embedding rounded at a time; a multiple of a tile


@dataclass
class Run:
    """One quantization under way. `hidden` [S, T, D] are the inputs of the next block, from quantized blocks before."""

    plan: Plan
    source: Source
    structure: Structure
    model: PreTrainedModel
    journal: Journal
    workers: Workers
    hidden: Tensor
    calls: list[BlockCall]
    batch: int
    progress: Progress
    unseen: list[str] = field(default_factory=list)  # experts that calibration never reached

    def blocks(self) -> None:
        """Quantize every block that the journal does not hold, replay the others."""
        blocks = self.model.get_submodule(self.structure.blocks)
        assert isinstance(blocks, nn.ModuleList)
        for index, block in enumerate(blocks):
            prefix = f"{self.structure.blocks}.{index}"
            self.progress("blocks", index, len(blocks))
            materialise(block, self.source, prefix)
            part = f"block-{index:05}"
            done = self.journal.get(part)
            if done is None:
                tensors, notes = self._solve_block(index, block, prefix)
                self.journal.put(part, tensors, notes)
            else:
                self._replay(block, prefix, done)
                self.unseen += self.journal.notes(part).get("unseen", [])
            if index + 1 < len(blocks):
                self._advance(index, block)
            release(block)
        self.progress("blocks", len(blocks), len(blocks))

    def tables(self) -> None:
        """Round the embedding and an untied head, a strip of rows at a time; they have no statistics."""
        parts = self.plan.contents.parts
        for name in parts:
            part = name.replace(".", "-")
            if self.journal.get(part) is None:
                self.progress(name, 0, 1)
                self.journal.put(part, self._table(name, self.plan.formats[name]), {})

    def _table(self, name: str, fmt: Format) -> dict[str, Tensor]:
        rows = self.source.shape(name + ".weight")[0]

        def strip(start: int) -> dict[str, Tensor]:
            ids = torch.arange(start, min(start + STRIP, rows))
            w = self.source.rows(name + ".weight", ids).float()
            if not bool(w.isfinite().all()):
                raise BadInput(f"the weight {name} of {self.source.name} holds NaN or infinite values.")
            return Rtn().solve(w, fmt, None).planes

        strips = list(self.workers.map(strip, range(0, rows, STRIP)))
        return {f"{name}.{role}": torch.cat([s[role] for s in strips]) for role in strips[0]}

    def _solve_block(self, index: int, block: nn.Module, prefix: str) -> tuple[dict[str, Tensor], dict[str, object]]:
        tensors: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        unseen: list[str] = []

        def keep(name: str, q: QTensor) -> None:
            tensors.update({f"{name}.{role}": plane for role, plane in q.planes.items()})

        for wave in self.structure.waves[index]:
            layers = {f"{prefix}.{n}": block.get_submodule(n) for n in wave if f"{prefix}.{n}" in self.plan.formats}
            for name, (q, error) in self._solve_wave(index, block, layers).items():
                keep(name, q)
                errors[name] = error
        for relative in self.structure.experts[index]:
            name = f"{prefix}.{relative}"
            if name in self.plan.formats:
                solved, missing = self._solve_experts(index, block, relative, name)
                for role in solved[0].planes:
                    tensors[f"{name}.{role}"] = torch.stack([q.planes[role] for q in solved])
                unseen += missing
        self.unseen += unseen
        return tensors, {"errors": errors, "unseen": unseen}

    def _solve_wave(
        self, index: int, block: nn.Module, layers: dict[str, nn.Module]
    ) -> dict[str, tuple[QTensor, float]]:
        """Solve the layers that share an input, and put the decoded weights in their place."""
        if not layers:
            return {}
        first = next(iter(layers.values()))
        assert isinstance(first, nn.Linear)
        statistics: Hessian | None = None
        if self.plan.recipe.solver.needs_hessian:
            run = self.calls[index].runner(block)
            grams = self.workers.map(lambda batch: gram(run, first, batch), self._batches())
            statistics = hessian(grams, next(iter(layers)))

        def solve(item: tuple[str, nn.Module]) -> tuple[QTensor, float]:
            name, layer = item
            return self._solve(name, layer.weight, statistics)  # type: ignore[arg-type]

        found = dict(zip(layers, self.workers.map(solve, layers.items()), strict=True))
        for name, layer in layers.items():
            layer.weight = nn.Parameter(found[name][0].dequantize(), requires_grad=False)  # type: ignore[assignment]
        return found

    def _solve(self, name: str, w: Tensor, statistics: Hessian | None) -> tuple[QTensor, float]:
        """The packed weight and its output error relative to the output (to the weight, without statistics)."""
        q = self.plan.recipe.solver.solve(w, self.plan.formats[name], statistics)
        decoded = q.dequantize()
        if not bool(decoded.isfinite().all()):
            raise WorkFailed(f"quantizing {name} gave non-finite weights: raise solver.damping.")
        if statistics is None:
            return q, float((decoded - w).square().sum() / w.square().sum().clamp(min=1e-30))
        return q, statistics.error(decoded - w) / max(statistics.error(w), 1e-30)

    def _solve_experts(self, index: int, block: nn.Module, relative: str, name: str) -> tuple[list[QTensor], list[str]]:
        stack = block.get_parameter(relative)
        statistics: dict[int, Hessian | None] = {}
        if self.plan.recipe.solver.needs_hessian:
            run = self.calls[index].runner(block)
            seen = list(self.workers.map(lambda batch: expert_grams(run, stack, batch), self._batches()))
            for e in range(stack.shape[0]):
                statistics[e] = hessian((s[e] for s in seen if e in s), f"{name}[{e}]")
        missing = [f"{name}[{e}]" for e, h in statistics.items() if h is None]
        for label in missing:
            log.warning("%s saw no calibration token: solved from its weights alone", label)

        def solve(e: int) -> QTensor:
            return self._solve(name, stack[e], statistics.get(e))[0]

        solved = list(self.workers.map(solve, range(stack.shape[0])))
        stack.copy_(torch.stack([q.dequantize() for q in solved]))
        return solved, missing

    def _replay(self, block: nn.Module, prefix: str, done: dict[str, Tensor]) -> None:
        """Put the weights of a finished block back in place."""
        for name, fmt in self.plan.formats.items():
            if not name.startswith(prefix + "."):
                continue
            relative = name.removeprefix(prefix + ".")
            roles = {k.removeprefix(name + "."): v for k, v in done.items() if k.startswith(name + ".")}
            if relative in self.structure.experts[self._index(prefix)]:
                stack = block.get_parameter(relative)
                for e in range(stack.shape[0]):
                    own = {role: plane[e] for role, plane in roles.items()}
                    stack[e] = QTensor(fmt, (stack.shape[1], stack.shape[2]), own).dequantize()
            else:
                layer = block.get_submodule(relative)
                assert isinstance(layer, nn.Linear)
                q = QTensor(fmt, (layer.out_features, layer.in_features), roles)
                layer.weight = nn.Parameter(q.dequantize(), requires_grad=False)

    def _index(self, prefix: str) -> int:
        return int(prefix.rpartition(".")[2])

    def _advance(self, index: int, block: nn.Module) -> None:
        """Outputs of the block as it is now become the inputs of the next."""
        run = self.calls[index].runner(block)
        outputs = self.workers.map(run, self._batches())
        for start, out in zip(range(0, len(self.hidden), self.batch), outputs, strict=True):
            if not bool(out.isfinite().all()):
                raise WorkFailed(f"block {index} gives non-finite outputs on the calibration text.")
            self.hidden[start : start + self.batch] = out

    def _batches(self) -> list[Tensor]:
        return [self.hidden[start : start + self.batch] for start in range(0, len(self.hidden), self.batch)]
