"""Memory of weights goes back to the system when the engine has copied them."""

from __future__ import annotations

import gc
import mmap
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.native.test_engine import model_of, pack
from torch import Tensor

from bitwright import _core
from bitwright.protocols import Dense
from bitwright.runtime import native
from bitwright.runtime.plan import read_plan
from bitwright.runtime.weights import ModuleWeights

pytest.importorskip("transformers")
IDS = [3, 7, 11]


class Fresh(ModuleWeights):
    """Weights whose codes nobody else has; `alive` counts those that are still in memory."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._made: list[weakref.ref[mmap.mmap]] = []
        self.held: list[_core.Matrix] = []

    def alive(self) -> int:
        gc.collect()
        return sum(ref() is not None for ref in self._made)

    def _matrix(self, module: Any, bias: Tensor | None) -> _core.Matrix:
        if any(not isinstance(term, Dense) for term in module.terms()):
            return super()._matrix(module, bias)
        terms = tuple(replace(term, codes=self._own(term.codes)) for term in module.terms())
        return native.native_matrix(terms, module.shape, bias).core

    def _own(self, codes: Tensor) -> Tensor:
        memory = mmap.mmap(-1, codes.numel())
        self._made.append(weakref.ref(memory))
        return torch.frombuffer(memory, dtype=torch.uint8).view(codes.shape).copy_(codes)


def test_what_was_copied_is_let_go() -> None:
    model = pack(model_of("llama"))
    plain = _core.Engine(read_plan(model.config, ModuleWeights(model), False), 2)
    wanted = [plain.forward(IDS, True), plain.forward(IDS, True)]

    weights = Fresh(model)
    plan = read_plan(model.config, weights, False)
    kept = plan.layers[0].q
    engine = _core.Engine(plan, 2)
    table = plan.embedding
    del plan
    before = weights.alive()
    assert before > 10
    assert (engine.forward(IDS, True) == wanted[0]).all()
    assert weights.alive() == before  # not before the first block has read them
    assert (engine.forward(IDS, True) == wanted[1]).all()
    assert weights.alive() == 2  # `kept`, and the embedding, whose rows are looked up where they are
    assert isinstance(kept, _core.Matrix)
    x = torch.randn(2, kept.shape[1])
    assert (kept.matmul(x, 1) == kept.reference(x)).all()
    del kept, table, engine
    assert weights.alive() == 0


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell memory here")
def test_pages_of_a_mapped_file_are_given_back(tmp_path: Path) -> None:
    def resident(of: Path) -> int:
        """Kilobytes of a file that this process holds."""
        lines, found = Path("/proc/self/smaps").read_text().splitlines(), 0
        for i, line in enumerate(lines):
            if line.endswith(str(of)):
                found += int(next(x for x in lines[i:] if x.startswith("Rss:")).split()[1])
        return found

    file = tmp_path / "weights"
    file.write_bytes(bytes(4 << 20))
    with file.open("rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():  # torch says once a process that it has no read-only tensors
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        mapped = torch.frombuffer(memory, dtype=torch.uint8)
    model = pack(model_of("llama"))
    weights = ModuleWeights(model)
    weights.files = [mapped]
    engine = _core.Engine(read_plan(model.config, weights, False), 1)
    assert int(mapped.sum()) == 0
    assert resident(file) == 4096
    engine.forward(IDS)
    assert resident(file) == 4096
    engine.forward(IDS)
    assert resident(file) == 0
    assert int(mapped.sum()) == 0  # and can be read again
