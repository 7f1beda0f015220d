"""From a table to losses that add up: one number for every tensor and option.

fisher    KL divergence a token by the Fisher information of the outputs (ModelOpt's gradient score, per row)
combined  the same, times what perturbing its group really did over what was predicted, at the reference format
measured  that measurement alone, spread over the tensors of the group and carried to other formats by the output error
hessian   tr(D H D^T), output error of the layer
weight    |D|^2
trace     mean Fisher trace times |D|^2 (HAWQ-V3, arXiv 2011.10680, with the Fisher information for the Hessian)
baq       c 4^-bits, c = sum range_r^2 / (24 u_c^2) (BAQ, arXiv 2506.05664)
mc-moe    experts: significance times change of the output of their block (MC-MoE, arXiv 2410.06270)
lim, zd   one importance a block (Layer-Wise Quantization, arXiv 2406.17415); only their order means something
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitwright.errors import UnknownName
from bitwright.protocols import Format
from bitwright.sensitivity.solved import Losses as Option
from bitwright.sensitivity.table import Table, Tensor, key
from bitwright.spec import label

Losses = dict[str, dict[str, float]]
"""Tensor -> label of a format -> loss."""

EXPERTS = "mc-moe"
"""The score of whole experts, measured on the outputs of their block."""
MEASURED = ("combined", "measured")
"""Scores that need groups measured in a reference format."""
DIVERGENCES = ("fisher", *MEASURED)
"""Scores in nats a token: comparable with what embedding and head lose."""


def losses(
    table: Table,
    score: str,
    formats: Sequence[Format],
    shapes: Mapping[str, tuple[int, ...]],
    reference: Format | None = None,
) -> Losses:
    """Losses of linears [R, C] by a score, for each of the formats; `reference` is what groups were measured in."""
    if score not in SCORES:
        raise UnknownName("score", score, SCORES)
    groups = _groups(table, key(reference)) if score in MEASURED and reference is not None else {}

    def loss(name: str, fmt: Format) -> float:
        rows, columns = shapes[name]
        bits = fmt.bits((rows, columns)).total / (rows * columns)
        row = table.tensors[name]
        group = groups.get(row.group, _Group(1, 1, 1))
        return SCORES[score](_Case(table, row, row.options[key(fmt)], row.whole.get(key(fmt), 0.0), bits, group))

    return {name: {label(fmt): loss(name, fmt) for fmt in formats} for name in shapes}


@dataclass(frozen=True)
class _Group:
    """Of linears that were measured together: KL measured, KL predicted, output error, all in the reference format."""

    measured: float
    predicted: float
    output: float


@dataclass(frozen=True)
class _Case:
    """One tensor in one format."""

    table: Table
    row: Tensor
    option: Option
    whole: float  # what the whole expert changes in this format
    bits: float  # stored, a weight
    group: _Group


def _groups(table: Table, reference: str) -> dict[str, _Group]:
    predicted, output = dict.fromkeys(table.measured[reference], 0.0), dict.fromkeys(table.measured[reference], 0.0)
    for row in table.tensors.values():
        predicted[row.group] += row.options[reference].divergence
        output[row.group] += row.options[reference].output
    return {
        g: _Group(kl, max(predicted[g], 1e-30), max(output[g], 1e-30)) for g, kl in table.measured[reference].items()
    }


def _rank(importance: float, bits: float, row: Tensor) -> float:
    """Falls with the bits, at a rate that is the block's importance, shared out over its tensors."""
    return importance * row.weights * (16 - bits)


SCORES: dict[str, Callable[[_Case], float]] = {
    "fisher": lambda case: case.option.divergence,
    "combined": lambda case: case.option.divergence * case.group.measured / case.group.predicted,
    "measured": lambda case: case.option.output * case.group.measured / case.group.output,
    "hessian": lambda case: case.option.output,
    "weight": lambda case: case.option.weight,
    "trace": lambda case: case.row.trace / case.row.weights * case.option.weight,
    "baq": lambda case: case.row.curvature * 4.0**-case.bits,
    "mc-moe": lambda case: case.row.significance * case.whole,
    "lim": lambda case: _rank(1.01 + case.table.lim[case.row.block], case.bits, case.row),
    "zd": lambda case: _rank(1 - case.table.zd[case.row.block], case.bits, case.row),
}
