"""What formats share whose every weight is scale * code + min."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _fit, _layout
from bitwright.groups import Params, group_count, per_column
from bitwright.protocols import ColumnStats, Dense, Operand, Planes, PlaneSpec

ACTIVATION_GROUP = 128  # columns that share an activation scale where weights have none to follow


class AffineCodes(ABC):
    """Storage of affine codes. A subclass says `group`, `levels`, `width` and `offset`, and how to `fit`."""

    group: int | None

    @property
    def step(self) -> int:
        """Every column is coded on its own."""
        return 1

    @property
    @abstractmethod
    def levels(self) -> int:
        """How many codes there are."""

    @property
    def width(self) -> int | str:
        """Bits of a code, or "base3"."""
        return (self.levels - 1).bit_length()

    @property
    @abstractmethod
    def offset(self) -> float | None:
        """min / scale where the format fixes it; None where mins are stored."""

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Nothing is decided for the whole matrix."""
        return {}

    @property
    def continuous(self) -> tuple[str, ...]:
        """Scales, and mins where they are stored."""
        return ("scale", "min") if self.offset is None else ("scale",)

    def stored(self, params: Params) -> Params:
        """Scales and mins in f16; a min that the format fixes follows its scale."""
        scale = _fit.straight_half(params["scale"])
        low = _fit.straight_half(params["min"]) if self.offset is None else scale * self.offset
        return params | {"scale": scale, "min": low}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest codes, int32."""
        return _fit.nearest(w, params, self.levels)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """scale * code + min in float32."""
        return _fit.value(codes, params)

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """Codes [R, C] and scales [R, G] -> planes."""
        planes = {
            "weight": _layout.pack_codes(codes, self.width),
            "scales": _layout.pack_lanes(params["scale"]),
        }
        if self.offset is None:
            planes["mins"] = _layout.pack_lanes(params["min"])
        return planes

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        return _layout.unpack_codes(planes["weight"], self.width, shape).to(torch.int32), self.parameters(planes, shape)

    def parameters(self, planes: Planes, shape: tuple[int, int]) -> Params:
        """Scales and mins [R, G] of stored planes."""
        scale = _layout.unpack_lanes(planes["scales"], shape[0])
        if self.offset is None:
            return {"scale": scale, "min": _layout.unpack_lanes(planes["mins"], shape[0])}
        return {"scale": scale, "min": scale * self.offset}

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Codes uint8 [tiles, vectors, 64], scales (and mins) f16 [tiles, G, 16]."""
        count = _layout.tiles(shape[0])
        lanes = PlaneSpec(torch.float16, (count, group_count(shape[1], self.group), _layout.ROWS))
        specs = {
            "weight": PlaneSpec(torch.uint8, (count, _layout.vectors(shape[1], self.width), _layout.VECTOR)),
            "scales": lanes,
        }
        return specs | ({"mins": lanes} if self.offset is None else {})

    def bits(self, shape: tuple[int, int]) -> Bits:
        """Codes, f16 scales and mins; the rest of every plane is padding. A base-3 digit counts as 1.6 bits."""
        rows, columns = shape
        stored = sum(spec.bytes for spec in self.planes(shape).values()) * 8
        # Five digits share a byte: the codes of a weight are the bytes its row touches.
        codes = rows * columns * self.width if isinstance(self.width, int) else rows * -(-columns // 5) * 8
        scales = rows * group_count(columns, self.group) * 16
        mins = scales if self.offset is None else 0
        return Bits(codes=codes, scales=scales, mins=mins, padding=stored - codes - scales - mins)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite, base-3 bytes below 243; every other code stands for something."""
        if any(not _layout.finite(planes[role]) for role in ("scales", "mins") if role in planes):
            return "holds a scale that is not finite"
        if self.width == "base3" and int(planes["weight"].max()) > 242:
            return "holds a byte that is no five ternary digits"
        return None

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Dense, ...]:
        """One dense term."""
        return (
            Dense(
                codes=planes["weight"],
                width=self.width,
                scales=planes["scales"],
                mins=planes.get("mins"),
                offset=self.offset or 0.0,
                group=self.group,
                activation_group=self.group if self.group and self.group <= 160 else self._activation_group(),
            ),
        )

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The dense term unpacked."""
        codes = _layout.unpack_codes(planes["weight"], self.width, shape)
        params = self.parameters(planes, shape)
        return (Operand(codes, None, params["scale"], params["min"], self.group),)

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows, without touching the others."""
        taken = {name: _layout.take_rows(plane, ids) for name, plane in planes.items()}
        own = (len(ids), shape[1])
        codes, params = self.unpack(taken, own)
        return self.decode(codes, per_column(params, self.group, shape[1]))

    def _activation_group(self) -> int:
        return 160 if self.width == "base3" else ACTIVATION_GROUP


def check_group(owner: object, group: int | None, multiple: int) -> None:
    """A group ends where a vector or an activation group does."""
    longest = 160 if multiple == _layout.BASE3_COLUMNS else ACTIVATION_GROUP
    if group is None or (group > 0 and group % (multiple if group <= longest else longest) == 0):
        return
    advice = f"give a multiple of {multiple} up to {longest}, a multiple of {longest}, or none for one scale a row"
    raise BadField(owner, "group", group, advice)
