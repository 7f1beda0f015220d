"""The types that hold the rooms together.

Legend of shapes: R rows (outputs), C columns (inputs), G groups of columns, E experts, T tokens.
A *group* is a run of input columns that share parameters; the last one may be shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from bitwright.bits import Bits
from bitwright.groups import Params, per_column
from bitwright.linalg import Hessian
from bitwright.mixing import Mixer

Planes = dict[str, Tensor]
"""Stored tensors of one weight by role: "weight" (codes), "scales", "mins", "mask", ..."""


@dataclass(frozen=True)
class ColumnStats:
    """What calibration knows of each input column; float32 [C], or [n] for one group."""

    h: Tensor  # diagonal of H = (2 / tokens) * sum of x x^T, not damped
    u: Tensor  # diagonal of U, where inverse(H + damping) = U^T U, U upper triangular

    def __getitem__(self, columns: slice) -> ColumnStats:
        return ColumnStats(self.h[columns], self.u[columns])

    @classmethod
    def flat(cls, columns: int) -> ColumnStats:
        """Statistics that prefer no column, for work without calibration."""
        return cls(torch.ones(columns), torch.ones(columns))


@dataclass(frozen=True)
class PlaneSpec:
    """Shape and type of one stored plane, known from the shape of the weight alone."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        count = 1
        for n in self.shape:
            count *= n
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class Dense:
    """One kernel term: every weight is scale * code + min.

    `codes` uint8 [tiles, vectors, 64] in row-lane field planes (see `formats/_layout.py`);
    `width` is the bits of a code, "base3" for five ternary digits a byte, or "trellis": `codes` uint8 [tiles, words,
    128] are then 64-bit words (see `formats/_words.py`) of `per_word` windows, looked up in `table` uint8 [128];
    4-bit codes with a `table` uint8 [16] are looked up in it;
    `scales`, `mins` f16 [tiles, G, 16]; without `mins` the min is scale * `offset`;
    `group` columns share a scale (None: the whole row); activations are scaled per `activation_group`.
    `inputs` f16 [C]: the term's activations are multiplied by it before they become int8 codes.
    `picked` int32 [n], in their order: the only columns that there are codes for, those of every activation group from
    a new block of 32 on (see `_layout.pack_picked`).
    `rotated`: activations are rotated before anything else (`rotation.py`); all terms of a weight are alike in that.
    """

    codes: Tensor
    width: int | str
    scales: Tensor
    mins: Tensor | None
    offset: float
    group: int | None
    activation_group: int
    inputs: Tensor | None = None
    table: Tensor | None = None
    per_word: int = 0
    picked: Tensor | None = None
    rotated: bool = False


@dataclass(frozen=True)
class Sparse:
    """One kernel term: selected weights gain scale * code + min on top of the terms before it.

    `where` says how positions are stored: "bitmap" (`index` a 1-bit field plane), "offsets" (`index` uint8
    column offsets inside 256-column tiles, `counts` uint8 [R, ceil(C / 256)]) or "nm" (`index` uint8
    [tiles, blocks, 64], n = 4 slots a row and block of `block` columns, `values` alike).
    `values` uint8: in bitmap order (tile, column quad, row lane, column of the quad), 8 or 4 bits each;
    `starts` int32 [tiles + 1] is the running count of values before each tile; `scales`, `mins` f16 [tiles, 1, 16].
    """

    where: str
    index: Tensor
    values: Tensor
    bits: int
    scales: Tensor
    mins: Tensor
    starts: Tensor | None
    counts: Tensor | None
    block: int
    activation_group: int
    rotated: bool = False


Term = Dense | Sparse


@dataclass(frozen=True)
class Operand:
    """A term with its codes unpacked, for reference arithmetic.

    `codes` uint8 [R, C]; `mask` bool [R, C], None where every entry counts; `scale`, `min` float32 [R, G] of `group`
    columns each (None: [R, 1], the whole row); `inputs` [C] and `rotated` as in `Dense`.
    """

    codes: Tensor
    mask: Tensor | None
    scale: Tensor
    min: Tensor
    group: int | None
    inputs: Tensor | None = None
    rotated: bool = False


@runtime_checkable
class Format(Protocol):
    """Which values a weight may take and how they are stored. Frozen, pure, knows no model."""

    kind: ClassVar[str]

    def __hash__(self) -> int:
        """Equal formats are one."""
        ...

    @property
    def group(self) -> int | None:
        """Columns that share parameters; None: the whole row."""
        ...

    @property
    def step(self) -> int:
        """Neighbouring columns that are coded jointly, 1 where each is coded on its own; groups are multiples of it."""
        ...

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """Choices made once on the original weights [R, C]: masks, row-wide ranges."""
        ...

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Parameters of one group [R, n] from its current weights; `prior` is `prepare`'s share of it.

        `importance` [1, n] or [R, n] weighs the squared error of each entry; entries at 0 do not count.
        """
        ...

    @property
    def continuous(self) -> tuple[str, ...]:
        """Parameters that training may move; `decode` is differentiable in them."""
        ...

    def stored(self, params: Params) -> Params:
        """Parameters as they come back from storage: continuous ones rounded (gradients pass straight through), those
        that follow from them computed anew, the others as they are."""
        ...

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Nearest codes, int32, of the shape of `w`.

        Where columns are coded jointly, `importance` [1, n] or [R, n] weighs their squared errors; or, with `u` [n, n]
        upper triangular and n <= `step`, the errors e of W - Q = e u have the least sum of squares.
        """
        ...

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """The weights that codes stand for, exactly as kernels see them."""
        ...

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """Codes [R, C] and joined parameters -> stored planes."""
        ...

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """Inverse of `pack`."""
        ...

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """Every stored plane of a weight of this shape."""
        ...

    def bits(self, shape: tuple[int, int]) -> Bits:
        """Exact stored bits, from the shape alone."""
        ...

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """What is wrong with the values of untrusted planes of the right shapes; None if kernels may read them."""
        ...

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """What a kernel computes, as a sum over terms. Planes are viewed, not copied."""
        ...

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """The same terms unpacked."""
        ...

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Float32 [n, C]: chosen rows decoded, for look-up tables."""
        ...


@runtime_checkable
class Elastic(Format, Protocol):
    """A format whose weights are stored in blocks, of which the first ones alone are a coarser weight."""

    @property
    def blocks(self) -> int:
        """How many there are."""
        ...

    def prefix(self, count: int) -> Format:
        """The format of the first `count` blocks; its planes have the same names and shapes here."""
        ...

    def decode_prefix(self, codes: Tensor, params: Params, count: int) -> Tensor:
        """What the first `count` blocks of codes of this format stand for, differentiable as `decode` is."""
        ...


@runtime_checkable
class Additive(Elastic, Protocol):
    """An elastic format whose weights are sums of blocks, each a weight of its own."""

    def roles(self, index: int) -> dict[str, str]:
        """The planes of one block: by their names in `prefix(1)`, those they have here."""
        ...


@runtime_checkable
class Adaptive(Format, Protocol):
    """A format whose weight, that of `decode` and `terms`, gets factors of inputs and outputs that each token mixes."""

    @property
    def mixed(self) -> tuple[str, ...]:
        """Parameters that `decode` does not see; training may move them."""
        ...

    def mixer(self, params: Params) -> Mixer:
        """What tokens compute their factors by; differentiable."""
        ...

    def stored_mixer(self, planes: Planes, shape: tuple[int, int]) -> Mixer:
        """The same from stored planes, without their codes."""
        ...


@runtime_checkable
class Partition(Protocol):
    """Which entries of a matrix are salient."""

    kind: ClassVar[str]

    def split(self, w: Tensor, stats: ColumnStats) -> Tensor:
        """Bool [R, C], True where salient, chosen on the original weights."""
        ...

    def count(self, shape: tuple[int, int]) -> int:
        """Exactly how many entries `split` selects."""
        ...


@dataclass(frozen=True)
class QTensor:
    """A weight as stored: what solvers return, files hold and kernels read."""

    format: Format
    shape: tuple[int, int]
    planes: Planes

    def dequantize(self) -> Tensor:
        """Float32 [R, C], exactly the weights that kernels see."""
        codes, params = self.format.unpack(self.planes, self.shape)
        return self.format.decode(codes, per_column(params, self.format.group, self.shape[1]))


@runtime_checkable
class Solver(Protocol):
    """Chooses codes and parameters of one weight, never asks which format it has; `solve` is `as_coded` (turned.py)."""

    kind: ClassVar[str]

    @property
    def needs_hessian(self) -> bool:
        """Whether `solve` is to see the inputs of the weight."""
        ...

    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """`w` float32 [R, C]; `hessian` of its inputs, None where there are no statistics."""
        ...
