"""Sixteen values of one's choice: 4-bit codes that a table turns into int8, times a scale a group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.formats._affine import AffineCodes, check_group
from bitwright.groups import Params
from bitwright.protocols import Dense, Operand, Planes

ZERO = 128  # the code of value 0: kernels see value + 128
FP4 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Codebook(AffineCodes):
    """Weight = scale * value, values int8.

    `values` "nf4": quantiles of a Gaussian (QLoRA, arXiv 2305.14314, appendix E), rounded to 127ths. "fp4": 4-bit
    floats (e2m1), whose second zero is 5 ("fp4-resolution") or 8 ("fp4-asymmetry"), or -5 and -8 where a group's scale
    is negative (BitMoD, arXiv 2411.11745, which chooses among all four in each group). `search` narrower ranges are
    tried against the weighted squared error, each refitted by least squares.
    """

    kind: ClassVar[str] = "codebook"
    values: Literal["nf4", "fp4-resolution", "fp4-asymmetry"] = "nf4"
    group: int | None = 64
    search: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.search <= 100:
            raise BadField(self, "search", self.search, "give 0 to 100 candidates")
        check_group(self, self.group, _layout.BLOCK)

    @property
    def levels(self) -> int:
        """Sixteen."""
        return 16

    @property
    def offset(self) -> float | None:
        """Kernels see value + 128."""
        return -float(ZERO)

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """The best of the candidates of either sign."""
        weight, table = importance.expand_as(w).float(), _table(self.values)
        widest = torch.where(weight > 0, w.abs(), 0.0).amax(1, keepdim=True) / float(table.abs().max())
        scale, least = _fit.half(widest), torch.full_like(widest, torch.inf)
        for factor in torch.linspace(1, 0.6, self.search + 1).tolist():
            for sign in (factor, -factor):
                trial = _fit.half(widest * sign)
                value = table[self.encode(w, {"scale": trial})]
                exact = (weight * value * w).sum(1, keepdim=True) / (weight * value * value).sum(1, keepdim=True)
                trial = _fit.half(torch.where(exact.isfinite(), exact, trial))
                error = (weight * (w - trial * value) ** 2).sum(1, keepdim=True)
                better = error < least
                scale, least = torch.where(better, trial, scale), torch.where(better, error, least)
        return {"scale": scale, "min": scale * -ZERO}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest values, int32; a scale of 0 gives that of value 0."""
        scale, table = params["scale"].to(w.dtype), _table(self.values)
        inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
        borders = ((table[1:] + table[:-1]) / 2).to(w.dtype)
        return torch.bucketize((w * inverse).nan_to_num(0.0).contiguous(), borders).to(torch.int32)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """scale * value in float32."""
        return _table(self.values)[codes] * params["scale"]

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Dense, ...]:
        """One dense term with a table."""
        return tuple(replace(term, table=_bytes(self.values)) for term in super().terms(planes, shape))

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The dense term looked up."""
        table = _bytes(self.values)
        return tuple(replace(own, codes=table[own.codes.int()]) for own in super().operands(planes, shape))


@cache
def _table(values: str) -> Tensor:
    """In rising order, float32 [16], integers of -127 to 127."""
    match values:
        case "nf4":
            return (torch.tensor(NF4) * 127).round()
        case "fp4-resolution":
            return torch.tensor(sorted((*FP4, 5.0))) * 20
    return torch.tensor(sorted((*FP4, 8.0))) * 14


@cache
def _bytes(values: str) -> Tensor:
    """What kernels look up, value + 128, uint8 [16]."""
    return (_table(values) + ZERO).to(torch.uint8)


EXAMPLES = (
    Codebook(),
    Codebook("fp4-resolution", 32, search=0),
    Codebook("fp4-asymmetry", 128),
    Codebook("nf4", None, search=2),
)
