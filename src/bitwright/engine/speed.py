"""What a token will take on this machine in any mixture of formats, from a few measurements that are kept.

A step of the engine takes a share of what its products take alone on one thread, and a rest: attention, norms, waiting.
Every product is timed alone, and two whole steps, all blocks in the fastest and in the slowest format, which give share
and rest: what is predicted for a mixture lies between two speeds that were measured.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from bitwright.artifact.plan import formats, tensors
from bitwright.artifact.write import write_text
from bitwright.engine.units import Shapes
from bitwright.engine.workers import cores
from bitwright.errors import Refused, WorkFailed
from bitwright.models.cache import cache_folder
from bitwright.protocols import Format
from bitwright.recipe import Menu
from bitwright.runtime import native
from bitwright.runtime.latency import blank, product_seconds, step_seconds
from bitwright.runtime.load import assemble
from bitwright.runtime.plan import refusal
from bitwright.spec import fingerprint, label

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitwright.engine.job import Job
    from bitwright.engine.plan import Plan
    from bitwright.engine.quantize import Progress
    from bitwright.models.source import Source

Product = tuple[Format, tuple[int, int]]
LARGEST = 256 << 20  # bytes that are read to time a product: beyond every cache


@dataclass(frozen=True)
class Latency:
    """Nanoseconds of one token: `rest`, and each product of `products`, by format and shape."""

    rest: int
    products: Mapping[Product, int]


def latency(
    job: Job,
    menu: Menu,
    source: Source,
    planned: Callable[[Format], Plan],
    blocks: Shapes,
    head: Shapes,
    progress: Progress,
) -> Latency:
    """Of every format of the menu, for block weights and (where it is not fixed: not empty) the head.

    `planned` makes the plan in which all blocks have a format. `Refused` without an engine; `WorkFailed` where the
    machine is too busy to tell fast from slow.
    """
    refused = refusal(source.config) if native.available()[0] else native.why()
    if refused is not None:
        raise Refused(f"--min-speed counts steps of the compiled engine, which cannot run this model ({refused}).")
    threads = job.threads or cores()
    notes = _Notes.open(threads)
    plans = {fmt: planned(fmt) for fmt in menu.formats}
    stretch = min(LARGEST, 1 << (min(plan.file_bytes for plan in plans.values()) - 1).bit_length())
    used = {fmt: [(plan.formats[n], _matrix(s)) for n, s in (blocks | head).items()] for fmt, plan in plans.items()}
    wanted = dict.fromkeys(product for products in used.values() for product in products)
    wanted |= dict.fromkeys((fmt, _matrix(shape)) for shape in head.values() for fmt in menu.tables)
    alone = {}
    for done, (fmt, shape) in enumerate(wanted):
        progress("timing kernels", done, len(wanted))
        entry = f"{label(fmt)} {shape[0]}x{shape[1]} of {stretch}"
        alone[fmt, shape] = notes.get(entry, partial(product_seconds, fmt, shape, stretch))
    sums = {fmt: sum(alone[product] for product in products) for fmt, products in used.items()}
    ends = min(sums, key=sums.__getitem__), max(sums, key=sums.__getitem__)
    steps = []
    for done, fmt in enumerate(ends):
        progress("timing the engine", done, len(ends))
        told = {"config": plans[fmt].contents.config, "weights": plans[fmt].contents.quantization.model_dump()}
        entry = f"step {fingerprint(told)}"
        steps.append(notes.get(entry, lambda fmt=fmt: step_seconds(_hollow(plans[fmt], source), threads)))  # type: ignore[misc]
    share = (steps[1] - steps[0]) / (sums[ends[1]] - sums[ends[0]])
    if share <= 0:
        notes.forget()
        raise WorkFailed(
            f"a step in {label(ends[1])} was faster than one in {label(ends[0])}, whose products are faster: the "
            "machine is too busy to be timed; run the same command again when it is not."
        )
    return Latency(round(steps[0] - share * sums[ends[0]]), {k: round(share * v) for k, v in alone.items()})


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[-2], shape[-1]


def _hollow(plan: Plan, source: Source) -> PreTrainedModel:
    """The model of a plan with zeros for codes and scales: it takes the time of the real one."""
    contents = plan.contents
    specs = tensors(contents.quantization, contents.kept)

    def tensor(name: str) -> Tensor:
        return source.tensor(name) if name in contents.kept else blank(specs[name])

    return assemble(
        contents.config, contents.quantization, formats(contents.quantization), tensor, tuple(contents.kept)
    )


@dataclass
class _Notes:
    """Nanoseconds by entry, in a file that belongs to this processor, these kernels and this number of threads."""

    path: Path
    found: dict[str, int]

    @classmethod
    def open(cls, threads: int) -> _Notes:
        from bitwright import _core

        identity = {
            "processor": _processor(),
            "level": native.level(),
            "kernels": sha256(Path(str(_core.__file__)).read_bytes()).hexdigest(),
            "threads": threads,
        }
        path = cache_folder() / "latency" / f"{fingerprint(identity)[:24]}.json"
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def get(self, entry: str, measure: Callable[[], float]) -> int:
        if entry not in self.found:
            self.found[entry] = round(1e9 * measure())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".partial")
            write_text(fresh, json.dumps(self.found, indent=1, sort_keys=True))
            fresh.replace(self.path)
        return self.found[entry]

    def forget(self) -> None:
        """What was measured so far is of no use."""
        self.path.unlink(missing_ok=True)


def _processor() -> str:
    """The model of the processor, as the system names it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()
