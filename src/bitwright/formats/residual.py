"""A sum of one-bit planes with own scales, also by column: the family of BiLLM, ARB-LLM, DB-LLM and OneBit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _fit, _layout, _planes
from bitwright.formats._affine import check_group
from bitwright.groups import Params, per_column
from bitwright.protocols import ColumnStats, Operand, Planes, PlaneSpec, Term

MOST = 4  # planes: every code of a weight is tried


@dataclass(frozen=True)
class Residual:
    """weight = sum over planes of column scale * row scale * (+1 or -1), row scales one a group.

    Two planes are a symmetric codebook {+-(a + b), +-(a - b)}: signs with a second scale for the large weights (BiLLM,
    arXiv 2402.04291: the bitmap of its magnitude split is the second plane) and a binarized residual (ARB-LLM, arXiv
    2410.03129) are the same object, and `fitting` says who chooses the scales:
    "greedy" (mean |w|, then mean |what is left|), "split" (one break-point of |w| for the group, BiLLM algorithm 2) or
    "alternating" (codes and least-squares scales in turn, at most `rounds` times, ARB-LLM algorithm 1).
    `values` "bit" has planes of {0, 1} instead (DB-LLM, arXiv 2402.11960). `mean` adds a constant a group.
    `columns` "shared" is one column scale for all planes, "own" one a plane (ARB-RC, OneBit, a BitStack block).
    """

    kind: ClassVar[str] = "residual"
    order: int = 2
    group: int | None = 128
    fitting: Literal["greedy", "split", "alternating"] = "alternating"
    rounds: int = 15
    values: Literal["sign", "bit"] = "sign"
    mean: bool = False
    columns: Literal["none", "shared", "own"] = "none"

    def __post_init__(self) -> None:
        check_group(self, self.group, _layout.BLOCK)
        if not 1 <= self.order <= MOST:
            raise BadField(self, "order", self.order, f"give 1 to {MOST} planes")
        if self.rounds < 0:
            raise BadField(self, "rounds", self.rounds, "give 0 rounds or more")
        if self.fitting == "split" and self.order != 2:
            raise BadField(self, "fitting", self.fitting, "a magnitude split has 2 planes")
        if self.values == "bit" and (self.mean or self.order != 2):
            raise BadField(self, "values", self.values, "planes of bits come in pairs and without a mean")
        if self.fitting != "alternating" and (self.columns != "none" or self.values == "bit"):
            raise BadField(self, "fitting", self.fitting, "column scales and bits are fitted by 'alternating'")

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    @property
    def parts(self) -> tuple[_planes.Plane, ...]:
        """How each plane is stored."""
        low = 0.0 if self.values == "bit" else -0.5
        return tuple(_planes.Plane(self.group, None if self.mean and i == 0 else low) for i in range(self.order))

    @property
    def _columns(self) -> int:
        """How many vectors of column scales are stored."""
        return {"none": 0, "shared": 1, "own": self.order}[self.columns]

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Nothing is decided for the whole matrix."""
        return {}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Row scales of one group, and the scales of its columns."""
        book = _planes.Book(self.order, self.values == "bit", self.mean, self._columns)
        importance = importance.expand_as(w).to(w.dtype)
        if self.fitting == "greedy":
            return book.greedy(w, importance)
        if self.fitting == "split":
            return book.split(w, importance, shared=True)
        return book.alternate(w, importance, self.rounds)

    @property
    def continuous(self) -> tuple[str, ...]:
        """Scales of every plane (and the first one's mins), and those of columns."""
        rows = (_planes.named(name, i) for i, part in enumerate(self.parts) for name in part.continuous)
        return (*rows, *(_planes.named("column", i) for i in range(self._columns)))

    def stored(self, params: Params) -> Params:
        """All of them in f16."""
        found = dict(params)
        for i, part in enumerate(self.parts):
            own = part.stored(_planes.of_plane(params, i))
            found |= self.named(i, own)
        columns = (_planes.named("column", i) for i in range(self._columns))
        return found | {name: _fit.straight_half(params[name]) for name in columns}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest codes, int32: bit i belongs to plane i."""
        return _planes.nearest(w, params, self.order)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The sum of the planes in float32."""
        return _planes.value(codes, params, self.order)

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """The planes of every part, and f16 [C] for each vector of column scales."""
        planes: Planes = {}
        for i, part in enumerate(self.parts):
            for role, plane in part.pack((codes >> i) & 1, _planes.of_plane(params, i)).items():
                planes[_planes.named(role, i)] = plane
        for i in range(self._columns):
            planes[_planes.named("columns", i)] = params[_planes.named("column", i)][0].half()
        return planes

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        codes = torch.zeros(shape, dtype=torch.int32)
        params: Params = {}
        for i, part in enumerate(self.parts):
            bits, own = part.unpack(self.own(planes, i), shape)
            codes |= bits << i
            params |= self.named(i, own)
        for i in range(self._columns):
            params[_planes.named("column", i)] = planes[_planes.named("columns", i)].float()[None]
        return codes, params

    def own(self, planes: Planes, i: int) -> Planes:
        """The stored tensors of plane i under the names of the first."""
        roles = ("weight", "scales", "mins") if self.parts[i].offset is None else ("weight", "scales")
        return {role: planes[_planes.named(role, i)] for role in roles}

    @staticmethod
    def named(i: int, params: Params) -> Params:
        """Parameters of plane i under the names they have in the sum."""
        return {_planes.named(name, i): value for name, value in params.items()}

    @staticmethod
    def scale(params: Params, i: int) -> Tensor:
        """Steps [R, G] of plane i."""
        return params[_planes.named("scale", i)]

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Those of every part, numbered from the second on; column scales f16 [C]."""
        specs = {
            _planes.named(role, i): spec
            for i, part in enumerate(self.parts)
            for role, spec in part.planes(shape).items()
        }
        vector = PlaneSpec(torch.float16, (shape[1],))
        return specs | {_planes.named("columns", i): vector for i in range(self._columns)}

    def bits(self, shape: tuple[int, int]) -> Bits:
        """One bit a plane, f16 scales a group and plane, f16 column scales."""
        scales = Bits(scales=16 * shape[1] * self._columns)
        return sum((part.bits(shape) for part in self.parts), scales)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite."""
        vectors = [planes[_planes.named("columns", i)] for i in range(self._columns)]
        if not all(_layout.finite(v) for v in vectors):
            return "holds a scale that is not finite"
        flaws = (part.flaw(self.own(planes, i), shape) for i, part in enumerate(self.parts))
        return next((flaw for flaw in flaws if flaw), None)

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """A dense term a plane."""
        return tuple(
            replace(part.terms(self.own(planes, i), shape)[0], inputs=self._vector(planes, i))
            for i, part in enumerate(self.parts)
        )

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        return tuple(
            replace(part.operands(self.own(planes, i), shape)[0], inputs=self._vector(planes, i))
            for i, part in enumerate(self.parts)
        )

    def _vector(self, planes: Planes, i: int) -> Tensor | None:
        if self.columns == "none":
            return None
        return planes[_planes.named("columns", i if self.columns == "own" else 0)]

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows, without touching the others."""
        vectors = {role: plane for role, plane in planes.items() if role.startswith("columns")}
        taken = {role: _layout.take_rows(plane, ids) for role, plane in planes.items() if role not in vectors}
        codes, params = self.unpack(taken | vectors, (len(ids), shape[1]))
        return self.decode(codes, per_column(params, self.group, shape[1]))


EXAMPLES = (
    Residual(),
    Residual(2, 64, "split"),
    Residual(2, None, "greedy", mean=True),
    Residual(3, 128, rounds=4),
    Residual(2, 64, values="bit"),
    Residual(1, None, columns="shared"),
    Residual(2, 128, columns="shared", mean=True),
    Residual(2, 128, columns="own"),
)
