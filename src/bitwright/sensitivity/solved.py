"""What really solved options lose, on a sample of the rows of every linear.

Rows are solved independently of each other, so some rows stand for all: drawn in proportion to what they are likely
to lose, half of them evenly, and weighted by the inverse (Hansen and Hurwitz 1943).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.linalg import Hessian
from bitwright.protocols import Format, Solver
from bitwright.sensitivity.observe import Observed

ROWS = 64  # solved of every linear


@dataclass(frozen=True)
class Losses:
    """Losses of one option of one linear [R, C], D being the change of the weight."""

    weight: float  # |D|^2
    output: float  # tr(D H D^T), H = (2 / tokens) sum x x^T
    divergence: float  # KL divergence a token in nats, from the Fisher information


@dataclass(frozen=True)
class _Sample:
    rows: Tensor  # int64 [n]
    weights: Tensor  # float64 [n]; the sum over these rows times their weights estimates the sum over all


def sample(w: Tensor, gradient: Tensor, count: int = ROWS) -> _Sample:
    """Rows of a weight [R, C], systematically by |w_r|^2 times the mean squared gradient [R] of their outputs."""
    total = w.shape[0]
    if total <= count:
        return _Sample(torch.arange(total), torch.ones(total, dtype=torch.float64))
    likely = w.double().square().sum(1) * gradient.double()
    share = 0.5 * likely / likely.sum().clamp(min=1e-300) + 0.5 / total
    points = (torch.arange(count, dtype=torch.float64) + 0.5) / count * share.sum()
    rows = torch.searchsorted(share.cumsum(0), points).clamp(max=total - 1)
    return _Sample(rows, 1 / (count * share[rows]))


def losses(
    weights: Mapping[str, Tensor],
    seen: Mapping[str, Observed],
    curvature: Hessian,
    formats: Sequence[Format],
    solver: Solver,
) -> dict[str, list[Losses]]:
    """Losses of linears that share their input and its Hessian, by name, one for each format."""
    samples = {name: sample(w, seen[name].gradient) for name, w in weights.items()}
    stacked = torch.cat([weights[name][samples[name].rows] for name in weights])
    found: dict[str, list[Losses]] = {name: [] for name in weights}
    for fmt in formats:
        change = solver.solve(stacked, fmt, curvature).dequantize() - stacked
        parts = torch.split(change, [len(s.rows) for s in samples.values()])
        for name, part in zip(samples, parts, strict=True):
            found[name].append(_estimate(part, samples[name], seen[name], curvature))
    return found


def divergence(change: Tensor, seen: Observed) -> float:
    """KL divergence a token in nats of a change [R, C] of all rows, from the Fisher information."""
    share = seen.gradient / seen.gradient.sum().clamp(min=1e-30)
    guided = ((change @ seen.guided) * change).sum(1) * share
    return 0.5 * float(guided.sum(dtype=torch.float64)) / seen.gram.tokens


def _estimate(change: Tensor, sampled: _Sample, seen: Observed, curvature: Hessian) -> Losses:
    def over_rows(values: Tensor) -> float:
        return float((values.double() * sampled.weights).sum())

    share = seen.gradient / seen.gradient.sum().clamp(min=1e-30)
    guided = ((change @ seen.guided) * change).sum(1) * share[sampled.rows]
    return Losses(
        weight=over_rows(change.square().sum(1)),
        output=over_rows(((change @ curvature.matrix) * change).sum(1)),
        divergence=0.5 * over_rows(guided) / seen.gram.tokens,
    )
