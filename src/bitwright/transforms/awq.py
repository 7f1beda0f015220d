"""AWQ (arXiv 2306.00978): input columns that see large activations are scaled up before they are rounded.

s = mean|x|^alpha, with alpha searched for every site on the output error of its linears. The paper searches on the
output of the whole attention or MLP; here it is the sum of the relative output errors of the linears, under the Hessian
of their inputs. Its search of clipped ranges is a matter of the format (`search` of integers) and of its fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.block_task import BlockTask
from bitwright.calibrate.observe import Gram, hessian, inputs
from bitwright.errors import BadField
from bitwright.groups import per_column
from bitwright.linalg import Hessian
from bitwright.protocols import ColumnStats, Format
from bitwright.solvers.rtn import rounded
from bitwright.transforms._sites import Site, scale, sites
from bitwright.turned import Turned

LEAST = 1e-4  # scale before it is normalised


@dataclass(frozen=True)
class Awq:
    """`steps` values of alpha, 0 to 1; `rows` of each linear are rounded to compare them."""

    kind: ClassVar[str] = "awq"
    steps: int = 20
    rows: int = 128

    def __post_init__(self) -> None:
        for name in ("steps", "rows"):
            if getattr(self, name) < 1:
                raise BadField(self, name, getattr(self, name), "give 1 or more")

    def apply(self, task: BlockTask) -> list[str]:
        """Scale every site by its best s; the same as before where no alpha above 0 helps."""
        left: list[str] = []
        for wave, site in sites(task):
            if site is None:
                left += wave
                continue
            chosen = self._search(task, site)
            if chosen is not None:
                scale(task, site, chosen)
        return left

    def _search(self, task: BlockTask, site: Site) -> Tensor | None:
        """Scales [channels] of least error; None where there are no tokens or no scaling is best."""
        h, magnitude = _observed(task, site)
        if h is None:
            return None
        trials = [_scales(site.mean(magnitude), i / self.steps) for i in range(self.steps + 1)]

        def error(s: Tensor) -> float:
            return sum(self._error(task, name, h, site.columns(s, 1.0)) for name in site.consumers)

        errors = list(task.map(error, trials))
        best = min(range(len(errors)), key=errors.__getitem__)
        return trials[best] if best else None

    def _error(self, task: BlockTask, name: str, h: Hessian, s: Tensor) -> float:
        """Of the output relative to the output, for the columns [C] of a linear times s."""
        fmt = task.formats.get(name)
        if fmt is None:
            return 0.0
        weight = task.module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        w = weight[:: max(len(weight) // self.rows, 1)]
        return h.error(_decoded(w * s, fmt, h.diagonal / s**2) / s - w) / max(h.error(w), 1e-30)


def _decoded(w: Tensor, fmt: Format, curvature: Tensor) -> Tensor:
    """The nearest weights of a format, columns weighed by the curvature [C]."""
    if isinstance(fmt, Turned):
        return fmt.restored(_decoded(fmt.turned(w), fmt.inner, fmt.seen_diagonal(curvature)))
    h = curvature + 1e-4 * curvature.mean() + torch.finfo(torch.float32).tiny
    codes, params = rounded(w, fmt, ColumnStats(h, h.rsqrt()), weighted=True)
    return fmt.decode(codes, per_column(params, fmt.group, w.shape[1]))


def _scales(magnitude: Tensor, alpha: float) -> Tensor:
    """magnitude^alpha around 1."""
    s = (magnitude**alpha).clamp(min=LEAST)
    return s / (s.max() * s.min()).sqrt()


def _observed(task: BlockTask, site: Site) -> tuple[Hessian | None, Tensor]:
    """Hessian and mean |x| [C] of the inputs of a site."""
    layer = task.module.get_submodule(site.consumers[0])
    assert isinstance(layer, torch.nn.Linear)

    def look(batch: Tensor) -> tuple[Gram, Tensor]:
        x = inputs(task.run, layer.weight, batch)
        return Gram.of(x), x.flatten(0, -2).abs().sum(0, dtype=torch.float64)

    total = torch.zeros(layer.in_features, dtype=torch.float64)

    def grams() -> Iterator[Gram]:
        for each, magnitude in task.map(look, task.batches):
            total.add_(magnitude)
            yield each

    found = hessian(grams(), site.consumers[0])
    return found, (total / max(found.tokens if found else 0, 1)).float()


EXAMPLES = (Awq(steps=4),)
