"""From a table to losses that add up: one number for every tensor and option.

fisher    KL divergence a token by the Fisher information of the outputs (ModelOpt's gradient score, per row)
combined  the same, corrected by what perturbing groups of tensors really does to the model
measured  only that: KL of the group at the nearest measured format, shared out by the output error
hessian   tr(D H D^T), output error of the layer
weight    |D|^2
trace     mean Fisher trace times |D|^2 (HAWQ-V3, arXiv 2011.10680, with the Fisher information for the Hessian)
baq       c 4^-bits, c = sum range_r^2 / (24 u_c^2) (BAQ, arXiv 2506.05664)
lim, zd   one importance a block (Layer-Wise Quantization, arXiv 2406.17415); only their order means something
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from bitwright.errors import UnknownName
from bitwright.sensitivity.table import Table, Tensor

Losses = dict[str, dict[str, float]]
"""Tensor -> option -> loss."""

Score = Literal["fisher", "combined", "measured", "hessian", "weight", "trace", "baq", "lim", "zd"]
RANKS = ("lim", "zd")
DIVERGENCES = ("fisher", "combined", "measured")  # in nats a token: comparable with each other and with tables


def losses(table: Table, score: str, bits: Mapping[str, Mapping[str, float]]) -> Losses:
    """Losses by a score; `bits`: stored bits a weight of every tensor's options."""
    if score not in SCORES:
        raise UnknownName("score", score, SCORES)
    return {
        name: {option: SCORES[score](table, name, row, option, bits[name][option]) for option in row.options}
        for name, row in table.tensors.items()
    }


def _rank(importance: float, bits: float, row: Tensor) -> float:
    """Falls with the bits, at a rate that is the block's importance, shared out over its tensors."""
    return importance * row.weights * (16 - bits)


SCORES: dict[str, Callable[[Table, str, Tensor, str, float], float]] = {
    "fisher": lambda table, name, row, option, bits: row.options[option].divergence,
    "hessian": lambda table, name, row, option, bits: row.options[option].output,
    "weight": lambda table, name, row, option, bits: row.options[option].weight,
    "trace": lambda table, name, row, option, bits: row.trace / row.weights * row.options[option].weight,
    "baq": lambda table, name, row, option, bits: row.curvature * 4.0**-bits,
    "lim": lambda table, name, row, option, bits: _rank(1.01 + table.lim[row.block], bits, row),
    "zd": lambda table, name, row, option, bits: _rank(1 - table.zd[row.block], bits, row),
}
