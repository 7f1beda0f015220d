"""Trellis codes of 1 to 5.33 bits: columns of a 64-bit word share bits, so that values are chosen jointly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats import _fit, _layout, _words
from bitwright.formats._affine import ACTIVATION_GROUP
from bitwright.formats._tables import STEPS, TABLES
from bitwright.groups import Params, group_count, per_column
from bitwright.protocols import ColumnStats, Dense, Operand, Planes, PlaneSpec, Term

PER_WORD = tuple(TABLES)  # 5.33, 4, 3.2, 2.67, 2.29, 2, 1.6, 1.33, 1.14 and 1 bit
LONGEST = 160  # columns that share an activation scale
ZERO = 128  # the code of value 0: kernels see value + 128
SPREAD = (0.9, 1.0, 1.1)  # scales tried, relative to that of Gaussian weights


@dataclass(frozen=True)
class Trellis:
    """Weight = scale * value, the value an integer of -128 .. 127 that a table gives for a 7-bit window of a word.

    A word of 64 bits holds `per_word` columns of a row and is circular: 12, 16, 20, 24, 28, 32, 40, 48, 56 or 64 are
    5.33, 4, 3.2, 2.67, 2.29, 2, 1.6, 1.33, 1.14 and 1 bit a weight. Codes are windows; those of neighbouring columns
    overlap, so a word is coded as a whole (`step` columns). The bitshift trellis of QTIP (arXiv 2406.11235), with a
    window and a tail short enough for vector registers, on weights as they are instead of rotated ones. The last bit
    of a window turns the sign of its value.
    """

    kind: ClassVar[str] = "trellis"
    per_word: int = 32
    group: int | None = None

    def __post_init__(self) -> None:
        if self.per_word not in TABLES:
            raise BadField(self, "per_word", self.per_word, f"give one of {', '.join(map(str, TABLES))}")
        run = self.per_word if self.group is None or self.group <= LONGEST else self._run
        if self.group is not None and (self.group < 1 or self.group % run):
            advice = (
                f"give a multiple of {self.per_word} up to {LONGEST}, a multiple of {self._run}, or none for one a row"
            )
            raise BadField(self, "group", self.group, advice)

    @property
    def step(self) -> int:
        """Columns of a word."""
        return self.per_word

    @property
    def _run(self) -> int:
        """Columns that share an activation scale where weights share theirs for longer: whole words."""
        return ACTIVATION_GROUP if ACTIVATION_GROUP % self.per_word == 0 else 144 // self.per_word * self.per_word

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Nothing is decided for the whole matrix."""
        return {}

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """The best of a few scales around that of Gaussian weights, each refitted by least squares to its codes."""
        weight = importance.expand_as(w).float()
        total = weight.sum(1, keepdim=True)
        spread = ((weight * w.float() ** 2).sum(1, keepdim=True) / (total + (total == 0))).sqrt() * STEPS[self.per_word]
        scale, least = _fit.half(spread), torch.full_like(spread, torch.inf)
        for factor in SPREAD:
            trial = _fit.half(spread * factor)
            value = self._looked_up(self.encode(w, {"scale": trial}, importance))
            exact = (weight * value * w).sum(1, keepdim=True) / (weight * value * value).sum(1, keepdim=True)
            trial = _fit.half(torch.where(exact.isfinite(), exact, trial))
            error = (weight * (w - trial * value) ** 2).sum(1, keepdim=True)
            better = error < least
            scale, least = torch.where(better, trial, scale), torch.where(better, error, least)
        return {"scale": scale}

    @property
    def continuous(self) -> tuple[str, ...]:
        """Scales."""
        return ("scale",)

    def stored(self, params: Params) -> Params:
        """Scales in f16."""
        return params | {"scale": _fit.straight_half(params["scale"])}

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Windows, int32, of the best words."""
        scale = params["scale"].to(w.dtype)
        inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
        return _words.nearest(w * inverse, self._values(), self.per_word, importance, u)

    def _looked_up(self, codes: Tensor) -> Tensor:
        """Values of windows of any shape; indexing would give the same, much slower."""
        return self._values().index_select(0, codes.reshape(-1)).view(codes.shape)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """scale * value in float32."""
        return self._looked_up(codes) * params["scale"]

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """Windows [R, C] and scales [R, G] -> planes."""
        return {
            "weight": _words.pack_windows(codes, self.per_word),
            "scales": _layout.pack_lanes(params["scale"]),
        }

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        windows = _words.unpack_windows(planes["weight"], self.per_word, shape)
        return windows.to(torch.int32), {"scale": _layout.unpack_lanes(planes["scales"], shape[0])}

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Words uint8 [tiles, words, 128], scales f16 [tiles, G, 16]."""
        count = _layout.tiles(shape[0])
        width = _layout.ROWS * _words.WORD_BYTES
        return {
            "weight": PlaneSpec(torch.uint8, (count, _words.words(shape[1], self.per_word), width)),
            "scales": PlaneSpec(torch.float16, (count, group_count(shape[1], self.group), _layout.ROWS)),
        }

    def bits(self, shape: tuple[int, int]) -> Bits:
        """64 / per_word bits a weight and f16 scales; the rest of every plane is padding. No table is stored."""
        rows, columns = shape
        stored = sum(spec.bytes for spec in self.planes(shape).values()) * 8
        codes = rows * columns * _words.WORD // self.per_word
        scales = rows * group_count(columns, self.group) * 16
        return Bits(codes=codes, scales=scales, padding=stored - codes - scales)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """Scales must be finite; every word stands for something."""
        return None if _layout.finite(planes["scales"]) else "holds a scale that is not finite"

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """One dense term with a table."""
        return (
            Dense(
                codes=planes["weight"],
                width="trellis",
                scales=planes["scales"],
                mins=None,
                offset=-ZERO,
                group=self.group,
                activation_group=self.group if self.group and self.group <= LONGEST else self._run,
                table=_table(self.per_word),
                per_word=self.per_word,
            ),
        )

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The dense term looked up."""
        windows, params = self.unpack(planes, shape)
        scale = params["scale"]
        return (Operand(_table(self.per_word)[windows], None, scale, scale * -ZERO, self.group),)

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows, without touching the others."""
        taken = {name: _layout.take_rows(plane, ids) for name, plane in planes.items()}
        windows, params = self.unpack(taken, (len(ids), shape[1]))
        return self.decode(windows, per_column(params, self.group, shape[1]))

    def _values(self) -> Tensor:
        return _table(self.per_word).float() - ZERO


@cache
def _table(per_word: int) -> Tensor:
    """Codes by window, value + 128, uint8 [128]."""
    half = torch.frombuffer(bytearray.fromhex(TABLES[per_word]), dtype=torch.int8).to(torch.int16)
    return (torch.cat([half, -half]) + ZERO).to(torch.uint8)


EXAMPLES = (
    Trellis(),
    Trellis(12, 48),
    Trellis(16),
    Trellis(20),
    Trellis(24, 144),
    Trellis(28, 280),
    Trellis(40),
    Trellis(48, 48),
    Trellis(56),
    Trellis(64, 256),
)
