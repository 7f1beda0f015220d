"""A low-bit format plus a few salient entries with 8 or 4 further bits (PB-LLM, arXiv 2310.00034)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.formats._masks import Bitmap, Codec, Nm, Offsets, WholeColumns
from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.residual import Residual
from bitwright.groups import Params, groups, per_column
from bitwright.partitions.columns import Columns
from bitwright.partitions.salience import Salience
from bitwright.partitions.slots import Slots
from bitwright.protocols import ColumnStats, Dense, Operand, Partition, Planes, PlaneSpec, Sparse, Term


@dataclass(frozen=True)
class Mixed:
    """weight = low value + [salient] (scale * code + min), scale and min one a row.

    Every entry has a low code; a salient one may take whichever low code lets its high code come nearest, so the
    sign plane of PB-LLM is not idle there. The mask is chosen once, on the original weights, and never changes.
    `where`: "bitmap" (1 bit an entry, any share), "offsets" (8 bits a salient entry, shares below 10 %),
    "nm" (four slots a row and block, wants `by=Slots(...)` and 8 bits) or "columns" (1 bit a column, wants
    `by=Columns(...)`).
    """

    kind: ClassVar[str] = "mixed"
    low: Binary | Integer | Residual = field(default_factory=Binary)
    by: Partition = field(default_factory=Salience)
    salient_bits: int = 8
    where: Literal["bitmap", "offsets", "nm", "columns"] = "bitmap"

    def __post_init__(self) -> None:
        if self.salient_bits not in (4, 8) or (self.where == "nm" and self.salient_bits != 8):
            raise BadField(self, "salient_bits", self.salient_bits, "give 8, or 4 with a bitmap or offsets")
        if (self.where == "nm") != isinstance(self.by, Slots):
            raise BadField(self, "where", self.where, "'nm' and a partition by slots go together")
        if (self.where == "columns") != isinstance(self.by, Columns):
            raise BadField(self, "where", self.where, "'columns' and a partition by columns go together")

    @property
    def group(self) -> int | None:
        """Columns that share the low parameters."""
        return self.low.group

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    @property
    def _codec(self) -> Codec:
        if isinstance(self.by, Slots):
            return Nm(self.by.block)
        codecs: dict[str, Codec] = {"bitmap": Bitmap(), "columns": WholeColumns(), "offsets": Offsets()}
        return codecs[self.where]

    @property
    def _levels(self) -> int:
        return 1 << self.salient_bits

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """The mask, float [R, C], and the row-wide range of what the low values leave of salient entries."""
        mask = self.by.split(w, stats)
        rest = torch.empty_like(w, dtype=torch.float32)
        for columns in groups(w.shape[1], self.group):
            part, low = w[:, columns], ~mask[:, columns] * stats.h[columns]
            params = self.low.fit(part, low, {})
            rest[:, columns] = part - self.low.decode(self.low.encode(part, params), params)
        scale, low_end = _fit.minmax(rest, mask.float(), self._levels, None)
        high = _fit.affine(scale, low_end, 0.0)
        return {"mask": mask.float(), "salient_scale": high["scale"], "salient_min": high["min"]}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """The low parameters from the entries that are not salient."""
        return prior | self.low.fit(w, importance * (1 - prior["mask"]), {})

    @property
    def continuous(self) -> tuple[str, ...]:
        """Those of the low format, and the salient range."""
        return (*self.low.continuous, "salient_scale", "salient_min")

    def stored(self, params: Params) -> Params:
        """The low format's, and the salient range in f16."""
        high = {name: _fit.straight_half(params[name]) for name in ("salient_scale", "salient_min")}
        return self.low.stored(params) | high

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """low code + 256 * (high code + 1) where salient."""
        near = self.low.encode(w, params)
        high = _high(params)
        # Shifting the low code by one offers a second, displaced grid: about one more bit of resolution for free.
        codes, least = near, torch.full_like(w, torch.inf)
        for low in (near, torch.where(near > 0, near - 1, near + 1)):
            rest = w - self.low.decode(low, params)
            code = _fit.nearest(rest, high, self._levels)
            error = (rest - _fit.value(code, high)).abs()
            codes = torch.where(error < least, low + 256 * (code + 1), codes)
            least = torch.minimum(error, least)
        return torch.where(params["mask"] > 0, codes, near)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """Low value, plus the high value where salient."""
        low, high = codes & 255, (codes >> 8) - 1
        return self.low.decode(low, params) + _fit.value(high.clamp(min=0), _high(params)) * (high >= 0)

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """Planes of the low format, of the mask and of the salient codes."""
        mask, high = codes >= 256, ((codes >> 8) - 1).clamp(min=0)
        return {
            **self.low.pack(codes & 255, params),
            **self._codec.pack(mask, high, self.salient_bits),
            "salient_scales": _layout.pack_lanes(params["salient_scale"][:, :1]),
            "salient_mins": _layout.pack_lanes(params["salient_min"][:, :1]),
        }

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        low, params = self.low.unpack(planes, shape)
        mask, high = self._codec.unpack(planes, shape, self.salient_bits)
        salient = {
            "mask": mask.float(),
            "salient_scale": _layout.unpack_lanes(planes["salient_scales"], shape[0]),
            "salient_min": _layout.unpack_lanes(planes["salient_mins"], shape[0]),
        }
        return low + 256 * (high.to(torch.int32) + 1) * mask, params | salient

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """The low format's planes, the codec's, and one f16 scale and min a row."""
        lanes = PlaneSpec(torch.float16, (_layout.tiles(shape[0]), 1, _layout.ROWS))
        codec = self._codec.planes(shape, self.by.count(shape), self.salient_bits)
        return {**self.low.planes(shape), **codec, "salient_scales": lanes, "salient_mins": lanes}

    def bits(self, shape: tuple[int, int]) -> Bits:
        """Low bits, places, tables, salient codes, one scale and min a row."""
        count = self.by.count(shape)
        masks, tables = self._codec.mask_bits(shape, count)
        low = self.low.bits(shape)
        own = Bits(
            codes=count * self.salient_bits, scales=16 * shape[0], mins=16 * shape[0], masks=masks, tables=tables
        )
        stored = sum(spec.bytes for spec in self.planes(shape).values()) * 8
        return low + own + Bits(padding=stored - low.total - own.total)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Finite scales, and places that lie inside the matrix and are as many as their codes."""
        if not all(_layout.finite(planes[role]) for role in ("salient_scales", "salient_mins")):
            return "holds a scale that is not finite"
        return self.low.flaw(planes, shape) or self._codec.flaw(planes, shape, self.by.count(shape))

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """Dense terms and a sparse one on top, or one of whole columns."""
        low = self.low.terms(planes, shape)
        if isinstance(self._codec, WholeColumns):
            return (*low, *self._whole(self._codec, planes, shape, low[0].activation_group))
        index = {"bitmap": "mask", "offsets": "offsets", "nm": "index"}[self.where]
        sparse = Sparse(
            where=self.where,
            index=planes[index],
            values=planes["salient"],
            bits=self.salient_bits,
            scales=planes["salient_scales"],
            mins=planes["salient_mins"],
            starts=planes.get("starts"),
            counts=planes.get("counts"),
            block=self.by.block if isinstance(self.by, Slots) else 0,
            activation_group=low[0].activation_group,
        )
        return (*low, sparse)

    def _whole(self, codec: WholeColumns, planes: Planes, shape: tuple[int, int], group: int) -> tuple[Dense, ...]:
        """The salient columns, codes beside each other; nothing where there are none."""
        picked = codec.columns(planes, shape)
        if not len(picked):
            return ()
        codes = codec.unpack(planes, shape, self.salient_bits)[1][:, picked]
        scales, mins = planes["salient_scales"], planes["salient_mins"]
        packed = _layout.pack_picked(codes, self.salient_bits, picked, group)
        return (Dense(packed, self.salient_bits, scales, mins, 0.0, None, group, picked=picked.to(torch.int32)),)

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The low term, and the salient one under its mask."""
        mask, high = self._codec.unpack(planes, shape, self.salient_bits)
        scale = _layout.unpack_lanes(planes["salient_scales"], shape[0])
        low_end = _layout.unpack_lanes(planes["salient_mins"], shape[0])
        return (*self.low.operands(planes, shape), Operand(high, mask, scale, low_end, None))

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows; places are stored in one run, so all of them are unpacked."""
        codes, params = self.unpack(planes, shape)
        spread = per_column(params, self.group, shape[1])
        return self.decode(codes[ids], {k: v[ids] if len(v) == shape[0] else v for k, v in spread.items()})


def _high(params: Params) -> Params:
    return {"scale": params["salient_scale"], "min": params["salient_min"]}


EXAMPLES = (
    Mixed(),
    Mixed(Binary(64), Salience(0.1, "magnitude"), 4),
    Mixed(Binary(None), Salience(0.05), 8, "offsets"),
    Mixed(Integer(2, 64), Salience(0.02), 4, "offsets"),
    Mixed(Binary(64), Slots(64), 8, "nm"),
    Mixed(Binary(128, mean=False), Slots(128), 8, "nm"),
    Mixed(Residual(1, None, columns="shared"), Columns(0.2), 4, "columns"),
)
