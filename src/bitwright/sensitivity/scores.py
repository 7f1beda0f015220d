"""From a table to losses that add up: one number for every tensor and option.

fisher    KL divergence a token by the Fisher information of the outputs (ModelOpt's gradient score, per row)
hessian   tr(D H D^T), output error of the layer
weight    |D|^2
trace     mean Fisher trace times |D|^2 (HAWQ-V3, arXiv 2011.10680, with the Fisher information for the Hessian)
baq       c 4^-bits, c = sum range_r^2 / (24 u_c^2) (BAQ, arXiv 2506.05664)
lim, zd   one importance a block (Layer-Wise Quantization, arXiv 2406.17415); only their order means something
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bitwright.errors import UnknownName
from bitwright.protocols import Format
from bitwright.sensitivity.solved import Losses as Option
from bitwright.sensitivity.table import Table, Tensor, key
from bitwright.spec import label

Losses = dict[str, dict[str, float]]
"""Tensor -> label of a format -> loss."""

DIVERGENCE = "fisher"
"""The score in nats a token: comparable with what embedding and head lose."""


def losses(table: Table, score: str, formats: Sequence[Format], shapes: Mapping[str, tuple[int, ...]]) -> Losses:
    """Losses of linears [R, C] by a score, for each of the formats."""
    if score not in SCORES:
        raise UnknownName("score", score, SCORES)

    def loss(name: str, fmt: Format) -> float:
        rows, columns = shapes[name]
        bits = fmt.bits((rows, columns)).total / (rows * columns)
        row = table.tensors[name]
        return SCORES[score](table, row, row.options[key(fmt)], bits)

    return {name: {label(fmt): loss(name, fmt) for fmt in formats} for name in shapes}


def _rank(importance: float, bits: float, row: Tensor) -> float:
    """Falls with the bits, at a rate that is the block's importance, shared out over its tensors."""
    return importance * row.weights * (16 - bits)


SCORES: dict[str, Callable[[Table, Tensor, Option, float], float]] = {
    "fisher": lambda table, row, option, bits: option.divergence,
    "hessian": lambda table, row, option, bits: option.output,
    "weight": lambda table, row, option, bits: option.weight,
    "trace": lambda table, row, option, bits: row.trace / row.weights * option.weight,
    "baq": lambda table, row, option, bits: row.curvature * 4.0**-bits,
    "lim": lambda table, row, option, bits: _rank(1.01 + table.lim[row.block], bits, row),
    "zd": lambda table, row, option, bits: _rank(1 - table.zd[row.block], bits, row),
}
