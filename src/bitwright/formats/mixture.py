"""Planes whose row and column scales every token mixes from a few experts (BinaryMoS, arXiv 2406.12311)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.formats.residual import Residual
from bitwright.groups import Params, per_column
from bitwright.mixing import Mixer
from bitwright.protocols import ColumnStats, Operand, Planes, PlaneSpec, Term

MOST = 16


@dataclass(frozen=True)
class Mixture:
    """The weight of `low` is what the first of `experts` computes; the others have factors of inputs and outputs.

    A router gives every token its mixture (`Mixer`). Without training all factors are 1, so the model is that of `low`;
    the router begins at random, as equal experts under equal routing would never part.
    """

    kind: ClassVar[str] = "mixture"
    low: Residual = field(default_factory=lambda: Residual(1, None, columns="shared"))
    experts: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.experts <= MOST:
            raise BadField(self, "experts", self.experts, f"give 2 to {MOST}, or the format {self.low} alone")

    @property
    def group(self) -> int | None:
        """Columns that share scales."""
        return self.low.group

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    def _names(self, role: str) -> list[str]:
        return [f"{role}{i}" for i in range(1, self.experts)]

    @property
    def mixed(self) -> tuple[str, ...]:
        """Router, factors of inputs and of outputs of the experts behind the first."""
        return tuple(name for role in ("router", "inputs", "outputs") for name in self._names(role))

    def mixer(self, params: Params) -> Mixer:
        """What a token computes its factors by; differentiable."""
        router, inputs = (torch.cat([params[name] for name in self._names(role)]) for role in ("router", "inputs"))
        outputs = torch.cat([params[name][:, :1] for name in self._names("outputs")], dim=1)
        return Mixer(router, inputs, outputs.t())

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Factors of 1, and a router as a linear layer begins: uniform in +-1 / sqrt(C), the same in every layer."""
        rows, columns = w.shape
        start = torch.rand(self.experts - 1, columns, generator=torch.Generator().manual_seed(0))
        router = _fit.half((2 * start - 1) / columns**0.5)
        params = {name: router[i : i + 1] for i, name in enumerate(self._names("router"))}
        params |= {name: torch.ones(1, columns) for name in self._names("inputs")}
        return params | {name: torch.ones(rows, 1) for name in self._names("outputs")}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Those of the planes."""
        return prior | self.low.fit(w, importance, {})

    @property
    def continuous(self) -> tuple[str, ...]:
        """Those of the planes; `mixed` are the others."""
        return self.low.continuous

    def stored(self, params: Params) -> Params:
        """All of them in f16."""
        return self.low.stored(params) | {name: _fit.straight_half(params[name]) for name in self.mixed}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest codes of the first expert."""
        return self.low.encode(w, params)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The weight of the first expert."""
        return self.low.decode(codes, params)

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """The planes, `router` and `inputs` f16 [k, C], `outputs` f16 [tiles, k, 16]."""
        mixer = self.mixer(params)
        own = {"router": mixer.router.half(), "inputs": mixer.inputs.half()}
        return self.low.pack(codes, params) | own | {"outputs": _layout.pack_lanes(mixer.outputs.t())}

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        codes, params = self.low.unpack(planes, shape)
        return codes, params | self._mixed_of(planes, shape[0])

    def stored_mixer(self, planes: Planes, shape: tuple[int, int]) -> Mixer:
        """The mixer of stored planes."""
        return self.mixer(self._mixed_of(planes, shape[0]))

    def _mixed_of(self, planes: Planes, rows: int) -> Params:
        params: Params = {}
        outputs = _layout.unpack_lanes(planes["outputs"], rows)
        for i in range(self.experts - 1):
            params |= {f"{role}{i + 1}": planes[role][i : i + 1].float() for role in ("router", "inputs")}
            params[f"outputs{i + 1}"] = outputs[:, i : i + 1]
        return params

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Those of `low`, and three of the mixer."""
        rows, columns = shape
        vectors = PlaneSpec(torch.float16, (self.experts - 1, columns))
        outputs = PlaneSpec(torch.float16, (_layout.tiles(rows), self.experts - 1, _layout.ROWS))
        return self.low.planes(shape) | {"router": vectors, "inputs": vectors, "outputs": outputs}

    def bits(self, shape: tuple[int, int]) -> Bits:
        """Those of `low`; f16 factors as scales, the router as a table."""
        rows, columns = shape
        low, each = self.low.bits(shape), 16 * (self.experts - 1)
        own = Bits(scales=each * (rows + columns), tables=each * columns)
        stored = 8 * sum(spec.bytes for spec in self.planes(shape).values())
        return low + own + Bits(padding=stored - low.total - own.total)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales, factors and router must be finite."""
        if not all(_layout.finite(planes[role]) for role in ("router", "inputs", "outputs")):
            return "holds a factor that is not finite"
        return self.low.flaw(planes, shape)

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """Those of the first expert."""
        return self.low.terms(planes, shape)

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        return self.low.operands(planes, shape)

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows of the first expert."""
        whole = {role: plane for role, plane in planes.items() if role.startswith(("columns", "router", "inputs"))}
        taken = {role: _layout.take_rows(plane, ids) for role, plane in planes.items() if role not in whole}
        codes, params = self.unpack(taken | whole, (len(ids), shape[1]))
        return self.decode(codes, per_column(params, self.group, shape[1]))


EXAMPLES = (Mixture(), Mixture(Residual(2, 64), 2))
