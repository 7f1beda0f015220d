"""N of every M weights of a row, in one-bit planes; the others are zero (STBLLM, arXiv 2408.01803)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _layout
from bitwright.formats.residual import Residual
from bitwright.groups import Params, groups, per_column
from bitwright.partitions.salience import scores
from bitwright.protocols import ColumnStats, Dense, Operand, Planes, PlaneSpec, Term

KEPT = 256  # added to the codes of weights that stay


@dataclass(frozen=True)
class Structured:
    """`keep` of every `of` consecutive weights of a row have a code of `low`, the others are 0.

    Which ones is decided once on the original weights and stored as the rank of the pattern among all, in
    ceil(log2 binomial(of, keep)) bits. `by` "hessian": w^2 / u^2 (SparseGPT); "magnitude"; "importance": |w| relative
    to its row and to its column, times the fourth root of the mean square input (STBLLM's metric as its code has it).
    A kernel gets ternary planes that are made when the weight is loaded: 2 bits a weight and plane in memory.
    """

    kind: ClassVar[str] = "structured"
    low: Residual = field(default_factory=Residual)
    keep: int = 4
    of: int = 8
    by: Literal["hessian", "magnitude", "importance"] = "hessian"

    def __post_init__(self) -> None:
        if self.of not in (4, 8):
            raise BadField(self, "of", self.of, "give 4 or 8")
        if not 1 <= self.keep < self.of:
            raise BadField(self, "keep", self.keep, f"give 1 to {self.of - 1} of {self.of}")
        if self.low.values != "sign" or self.low.mean or self.low.columns != "none":
            raise BadField(self, "low", self.low, "give planes of signs without mean and column scales")

    @property
    def group(self) -> int | None:
        """Columns that share scales."""
        return self.low.group

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    @property
    def _width(self) -> int:
        return (comb(self.of, self.keep) - 1).bit_length()

    def _patterns(self) -> Tensor:
        """Bool [binomial, of]: every pattern, in the order of its rank."""
        chosen = torch.tensor(list(combinations(range(self.of), self.keep)))
        return torch.zeros(len(chosen), self.of, dtype=torch.bool).scatter(1, chosen, True)

    def _runs(self, columns: int) -> int:
        return -(-columns // self.of)

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """The mask, float [R, C]."""
        if self.by == "importance":
            size = w.abs()
            relative = size / size.sum(0, keepdim=True).clamp(min=1e-30) + size / size.sum(1, keepdim=True).clamp(
                min=1e-30
            )
            score = relative * stats.h.to(w.dtype) ** 0.25
        else:
            score = scores(w, stats, self.by)
        rows, columns = w.shape
        padded = torch.full((rows, self._runs(columns) * self.of), -1.0, dtype=score.dtype)
        padded[:, :columns] = score
        best = padded.view(rows, -1, self.of).sort(dim=2, descending=True, stable=True).indices[:, :, : self.keep]
        mask = torch.zeros(rows, self._runs(columns), self.of).scatter(2, best, 1.0)
        return {"mask": mask.view(rows, -1)[:, :columns]}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Scales of the weights that stay."""
        return prior | self.low.fit(w, importance * prior["mask"], {})

    @property
    def continuous(self) -> tuple[str, ...]:
        """Those of the planes."""
        return self.low.continuous

    def stored(self, params: Params) -> Params:
        """Those of the planes."""
        return self.low.stored(params)

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """256 + the code of the planes, 0 where a weight is dropped."""
        return (self.low.encode(w, params) + KEPT) * (params["mask"] > 0)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The sum of the planes, or 0."""
        return self.low.decode(codes & (KEPT - 1), params) * (codes >= KEPT)

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """`index` has the patterns; the planes hold the codes that are left, `keep` a run."""
        rows, columns = codes.shape
        runs = self._runs(columns)
        padded = torch.zeros(rows, runs * self.of, dtype=torch.int32)
        padded[:, :columns] = codes
        # Columns behind the last count as kept where a short run has too few.
        order = torch.arange(self.of).expand(rows, runs, self.of)
        lines = padded.view(rows, runs, self.of)
        kept = ((lines == 0) * self.of + order).argsort(dim=2)[:, :, : self.keep].sort(dim=2).values
        weights = 1 << torch.arange(self.of)
        table = torch.zeros(1 << self.of, dtype=torch.uint8)
        table[(self._patterns() * weights).sum(1)] = torch.arange(comb(self.of, self.keep), dtype=torch.uint8)
        ranks = table[(1 << kept).sum(2)]
        inner = (lines.gather(2, kept) & (KEPT - 1)).view(rows, -1)
        planes = self.low.pack(inner, params)
        digits = (ranks.unsqueeze(2) >> torch.arange(self._width, dtype=torch.uint8)) & 1
        return planes | {"index": _layout.pack_codes(digits.view(rows, -1), 1)}

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        rows, columns = shape
        runs = self._runs(columns)
        mask = self._patterns()[self._ranks(planes, rows, runs)]
        packed = (rows, runs * self.keep)
        inner = torch.zeros(packed, dtype=torch.int32)
        params: Params = {}
        for i, part in enumerate(self.low.parts):
            own = self.low.own(planes, i)
            inner |= _layout.unpack_codes(own["weight"], 1, packed).to(torch.int32) << i
            params |= self.low.named(i, part.parameters(own, shape))
        codes = torch.zeros(rows, runs, self.of, dtype=torch.int32)
        codes[mask] = inner.view(-1) + KEPT
        return codes.view(rows, -1)[:, :columns], params | {"mask": mask.view(rows, -1)[:, :columns].float()}

    def _ranks(self, planes: Planes, rows: int, runs: int) -> Tensor:
        digits = _layout.unpack_codes(planes["index"], 1, (rows, runs * self._width)).view(rows, runs, -1)
        return (digits.long() << torch.arange(self._width)).sum(2)

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Codes of the weights that stay, scales, and the patterns."""
        runs = self._runs(shape[1])
        packed, full = self.low.planes((shape[0], runs * self.keep)), self.low.planes(shape)
        index = PlaneSpec(
            torch.uint8, (_layout.tiles(shape[0]), _layout.vectors(runs * self._width, 1), _layout.VECTOR)
        )
        return {role: packed[role] if role.startswith("weight") else full[role] for role in full} | {"index": index}

    def bits(self, shape: tuple[int, int]) -> Bits:
        """Codes of the weights that stay, patterns, scales."""
        rows, columns = shape
        stored = sum(spec.bytes for spec in self.planes(shape).values()) * 8
        kept = sum(min(self.keep, int(run.stop) - int(run.start)) for run in groups(columns, self.of))
        codes = rows * kept * self.low.order
        scales = self.low.bits(shape).scales
        masks = rows * self._runs(columns) * self._width
        return Bits(codes=codes, scales=scales, masks=masks, padding=stored - codes - scales - masks)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite and every rank that of a pattern."""
        if int(self._ranks(planes, shape[0], self._runs(shape[1])).max()) >= comb(self.of, self.keep):
            return "names a pattern that does not exist"
        return self.low.flaw(planes, shape)

    def _ternary(self, planes: Planes, shape: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """Of each plane the codes 0, 1, 2 for minus, zero, plus [R, C], and half its step [R, G]."""
        codes, params = self.unpack(planes, shape)
        found = []
        for i in range(self.low.order):
            sign = ((codes >> i) & 1) * 2 - 1
            found.append(((1 + sign * (codes >= KEPT)).to(torch.uint8), self.low.scale(params, i) / 2))
        return found

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """A ternary term a plane, made here."""
        groups_of = self.low.parts[0].terms(self.low.own(planes, 0), shape)[0]
        return tuple(
            Dense(
                codes=_layout.pack_codes(codes, 2),
                width=2,
                scales=_layout.pack_lanes(scale),
                mins=None,
                offset=-1.0,
                group=self.group,
                activation_group=groups_of.activation_group,
            )
            for codes, scale in self._ternary(planes, shape)
        )

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        return tuple(
            Operand(codes, None, scale.half().float(), -scale.half().float(), self.group)
            for codes, scale in self._ternary(planes, shape)
        )

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows, without touching the others."""
        taken = {role: _layout.take_rows(plane, ids) for role, plane in planes.items()}
        codes, params = self.unpack(taken, (len(ids), shape[1]))
        return self.decode(codes, per_column(params, self.group, shape[1]))


EXAMPLES = (
    Structured(),
    Structured(Residual(1, 64), 2, 4),
    Structured(Residual(2, None, rounds=3), 6, 8, "importance"),
)
