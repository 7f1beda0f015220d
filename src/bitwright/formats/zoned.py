"""Residual planes with row scales of their own for salient columns: BiLLM, and the column-group bitmap of ARB-LLM."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _layout, _planes
from bitwright.formats.residual import Residual
from bitwright.groups import Params, group_count, per_column
from bitwright.protocols import ColumnStats, Operand, Planes, PlaneSpec, Term

COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # of salient columns in a group that are tried (BiLLM: 1 to 49)
SALIENT = "salient_"


@dataclass(frozen=True)
class Zoned:
    """The planes of `low`; in salient columns of a group they have other row scales, fitted by `salient`.

    Salient are the columns of the largest sum of squares, weighed as the solver weighs errors (under the Hessian w^2 /
    u^2, BiLLM, arXiv 2402.04291, section 3.2), as many as make the group's error least. One bit a column says which.
    Every column has all planes, so their number costs nothing: the signs of the residual that BiLLM gives salient
    columns, and the bitmap of its magnitude split of the others, are both the second plane. ARB-LLM (arXiv 2410.03129,
    section 3.4) splits salient columns by magnitude as well ("alternating" for both).
    """

    kind: ClassVar[str] = "zoned"
    low: Residual = field(default_factory=lambda: Residual(2, 128, "split"))
    salient: Literal["greedy", "alternating"] = "greedy"

    def __post_init__(self) -> None:
        if self.salient == "greedy" and self.low.columns != "none":
            raise BadField(self, "salient", self.salient, "column scales are fitted by 'alternating'")
        if self.low.values == "bit":
            raise BadField(self, "low", self.low, "give planes of signs")

    @property
    def _high(self) -> Residual:
        return replace(self.low, fitting=self.salient)

    @property
    def group(self) -> int | None:
        """Columns that share scales with those of their zone."""
        return self.low.group

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    @property
    def _own(self) -> tuple[str, ...]:
        """Parameters that each zone has for itself."""
        return tuple(_planes.named(role, i) for i in range(self.low.order) for role in ("scale", "min"))

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Nothing is decided for the whole matrix: compensation moves what is salient."""
        return {}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """The zones of one group, and their scales."""
        order = (importance * w.square()).sum(0).sort(descending=True, stable=True).indices
        # The search goes by fits without rounds, as in both papers.
        trial = Zoned(replace(self.low, fitting="split" if self.low.order == 2 else "greedy", columns="none"), "greedy")
        best, least = torch.zeros(1, w.shape[1]), torch.inf
        for count in COUNTS:
            if 2 * count > w.shape[1]:
                break
            chosen = torch.zeros(1, w.shape[1])
            chosen[:, order[:count]] = 1.0
            params = trial.zones(w, importance, chosen)
            error = float((importance * (w - trial.decode(trial.encode(w, params), params)).square()).sum())
            if error < least:
                best, least = chosen, error
        return self.zones(w, importance, best)

    def zones(self, w: Tensor, importance: Tensor, chosen: Tensor) -> Params:
        """Scales of both zones, with the salient columns [1, n] given."""
        params = self.low.fit(w, importance * (1 - chosen), {})
        high = self._high.fit(w, importance * chosen, {})
        own = {SALIENT + name: high.pop(name) for name in self._own}
        columns = {name: torch.where(chosen > 0, value, params[name]) for name, value in high.items()}
        return params | columns | own | {"chosen": chosen}

    @property
    def continuous(self) -> tuple[str, ...]:
        """Those of the planes, and those of salient columns."""
        names = self.low.continuous
        return (*names, *(SALIENT + name for name in names if name in self._own))

    def stored(self, params: Params) -> Params:
        """All of them in f16."""
        high = self.low.stored(self._salient(params))
        return self.low.stored(params) | {SALIENT + name: high[name] for name in self._own}

    def _salient(self, params: Params) -> Params:
        """Parameters as salient columns have them."""
        return params | {name: params[SALIENT + name] for name in self._own}

    def _mixed(self, params: Params) -> Params:
        """Parameters as each column has them."""
        where = params["chosen"] > 0
        return params | {name: torch.where(where, params[SALIENT + name], params[name]) for name in self._own}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest codes, int32: bit i belongs to plane i."""
        return self.low.encode(w, self._mixed(params))

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The sum of the planes in float32."""
        return self.low.decode(codes, self._mixed(params))

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """The planes, the scales of salient columns under `salient_`, and which those are."""
        planes = self.low.pack(codes, params)
        own = {SALIENT + role: _layout.pack_lanes(params[SALIENT + name]) for role, name in self._lanes.items()}
        return planes | own | {"chosen": _layout.pack_flags(params["chosen"][0] > 0)}

    @property
    def _lanes(self) -> dict[str, str]:
        """Stored planes of row scales by role, and the parameter that each has."""
        roles = {"scale": "scales", "min": "mins"}
        names = [name for name in self.low.continuous if name in self._own]
        return {name.replace(role, roles[role]): name for name in names for role in roles if name.startswith(role)}

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        codes, params = self.low.unpack(planes, shape)
        _, high = self.low.unpack(self._of_salient(planes), shape)
        chosen = _layout.unpack_flags(planes["chosen"])[: shape[1]].float()[None]
        return codes, params | {SALIENT + name: high[name] for name in self._own} | {"chosen": chosen}

    def _of_salient(self, planes: Planes) -> Planes:
        """The planes of salient columns under the names of `low`."""
        return planes | {role: planes[SALIENT + role] for role in self._lanes}

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Those of `low`, its row scales twice, a bit a column."""
        specs = self.low.planes(shape)
        own = {SALIENT + role: specs[role] for role in self._lanes}
        return specs | own | {"chosen": PlaneSpec(torch.uint8, (-(-shape[1] // 8),))}

    def bits(self, shape: tuple[int, int]) -> Bits:
        """Planes, row scales of both zones, a bit a column."""
        rows, columns = shape
        low = self.low.bits(shape)
        lanes = 16 * rows * group_count(columns, self.group)
        mins = sum(role.startswith("mins") for role in self._lanes)
        own = Bits(scales=lanes * (len(self._lanes) - mins), mins=lanes * mins, masks=columns)
        stored = 8 * sum(spec.bytes for spec in self.planes(shape).values())
        return low + own + Bits(padding=stored - low.total - own.total)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite, and no column behind the last is salient."""
        if bool(_layout.unpack_flags(planes["chosen"])[shape[1] :].any()):
            return "marks a salient column outside the matrix"
        return self.low.flaw(planes, shape) or self.low.flaw(self._of_salient(planes), shape)

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """A dense term a plane and zone, whose inputs are those of its columns."""
        low, high = self.low.terms(planes, shape), self.low.terms(self._of_salient(planes), shape)
        inputs = self._inputs(planes, shape)
        return tuple(replace(term, inputs=x) for term, x in zip((*low, *high), inputs, strict=True))  # type: ignore[arg-type]

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        low, high = self.low.operands(planes, shape), self.low.operands(self._of_salient(planes), shape)
        inputs = self._inputs(planes, shape)
        return tuple(replace(term, inputs=x) for term, x in zip((*low, *high), inputs, strict=True))

    def _inputs(self, planes: Planes, shape: tuple[int, int]) -> list[Tensor]:
        """f16 [C] of each term: 1 or the column scale inside its zone, 0 outside; one tensor where they are equal."""
        chosen = _layout.unpack_flags(planes["chosen"])[: shape[1]].half()
        found = []
        for zone in (1 - chosen, chosen):
            if self.low.columns == "own":
                found += [zone * planes[_planes.named("columns", i)] for i in range(self.low.order)]
            else:
                found += [zone * planes["columns"] if self.low.columns == "shared" else zone] * self.low.order
        return found

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows, without touching the others."""
        whole = {role: plane for role, plane in planes.items() if role.startswith(("columns", "chosen"))}
        taken = {role: _layout.take_rows(plane, ids) for role, plane in planes.items() if role not in whole}
        codes, params = self.unpack(taken | whole, (len(ids), shape[1]))
        return self.decode(codes, per_column(params, self.group, shape[1]))


EXAMPLES = (
    Zoned(),
    Zoned(Residual(2, 64), "alternating"),
    Zoned(Residual(2, None, mean=True)),
    Zoned(Residual(2, 128, columns="own"), "alternating"),
)
