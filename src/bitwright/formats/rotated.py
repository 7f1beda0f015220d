"""Another format, of a weight whose inputs are rotated (incoherence processing, QuIP#, arXiv 2402.04396)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from bitwright.bits import Bits
from bitwright.errors import BadField
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.residual import Residual
from bitwright.formats.trellis import Trellis
from bitwright.groups import Params
from bitwright.linalg import Hessian
from bitwright.partitions.columns import Columns
from bitwright.protocols import Adaptive, ColumnStats, Dense, Elastic, Format, Operand, Planes, PlaneSpec, Term
from bitwright.rotation import restored, rotated, spread
from bitwright.turned import Turned

ALIKE = 640  # columns that share an activation scale, of about one size where they are rotated; kernels take as many
UNIT = 32  # columns that a kernel unpacks together


@dataclass(frozen=True)
class Rotated:
    """`inner` codes the weight for inputs that are multiplied by signs and mixed with each other (`rotation.py`).

    The same bits: signs are fixed. A kernel rotates activations before they become codes, once for all weights that
    share them. Here weights and latent weights are those for the inputs as they are; codes are of the rotated weight.
    """

    kind: ClassVar[str] = "rotated"
    inner: Format = field(default_factory=Trellis)

    def __post_init__(self) -> None:
        if isinstance(self.inner, Turned | Adaptive | Elastic):
            raise BadField(self, "inner", self.inner, "give a format without rotation, mixed scales and blocks")

    @property
    def group(self) -> int | None:
        """Rotated columns that share parameters."""
        return self.inner.group

    @property
    def step(self) -> int:
        """Rotated columns that are coded jointly."""
        return self.inner.step

    def turned(self, w: Tensor) -> Tensor:
        """The weight that `inner` codes."""
        return rotated(w)

    def restored(self, w: Tensor) -> Tensor:
        """Inverse of `turned`."""
        return restored(w)

    def seen(self, hessian: Hessian) -> Hessian:
        """That of rotated inputs."""
        return hessian.rotated()

    def seen_diagonal(self, h: Tensor) -> Tensor:
        """That of rotated inputs, if `h` is the diagonal of a diagonal Hessian."""
        return spread(h)

    def prepare(self, w: Tensor, stats: ColumnStats) -> Params:
        """The choices of `inner`; `stats` are of rotated inputs."""
        return self.inner.prepare(rotated(w), stats)

    def fit(self, w: Tensor, importance: Tensor, prior: Params) -> Params:
        """Of whole rows; `importance` is of rotated columns."""
        return self.inner.fit(rotated(w), importance, prior)

    @property
    def continuous(self) -> tuple[str, ...]:
        """Those of `inner`."""
        return self.inner.continuous

    def stored(self, params: Params) -> Params:
        """Those of `inner`."""
        return self.inner.stored(params)

    def encode(self, w: Tensor, params: Params, importance: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Codes of whole rows [R, C]; `importance` is of rotated columns."""
        return self.inner.encode(rotated(w), params, importance, u)

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """Whole rows, for inputs as they are."""
        return restored(self.inner.decode(codes, params))

    def pack(self, codes: Tensor, params: Params) -> Planes:
        """As `inner`."""
        return self.inner.pack(codes, params)

    def unpack(self, planes: Planes, shape: tuple[int, int]) -> tuple[Tensor, Params]:
        """As `inner`."""
        return self.inner.unpack(planes, shape)

    def planes(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """As `inner`."""
        return self.inner.planes(shape)

    def bits(self, shape: tuple[int, int]) -> Bits:
        """As `inner`."""
        return self.inner.bits(shape)

    def flaw(self, planes: Planes, shape: tuple[int, int]) -> str | None:
        """As `inner`."""
        return self.inner.flaw(planes, shape)

    def terms(self, planes: Planes, shape: tuple[int, int]) -> tuple[Term, ...]:
        """Those of `inner`, of rotated inputs, more of which share a scale where weights of a row share one.

        Codes of picked columns lie as the groups of `inner` are.
        """
        terms = self.inner.terms(planes, shape)
        own = self.group is not None or any(isinstance(term, Dense) and term.picked is not None for term in terms)
        group = terms[0].activation_group if own else self._activation_group(shape[1])
        return tuple(replace(term, rotated=True, activation_group=group) for term in terms)

    def _activation_group(self, columns: int) -> int:
        """Equal parts of up to `ALIKE` columns, in steps of what is coded jointly."""
        step = self.step if self.step > 1 else UNIT
        return -(-columns // -(-columns // ALIKE) // step) * step

    def operands(self, planes: Planes, shape: tuple[int, int]) -> tuple[Operand, ...]:
        """Those of `inner`, of rotated inputs."""
        return tuple(replace(operand, rotated=True) for operand in self.inner.operands(planes, shape))

    def rows(self, planes: Planes, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Chosen rows."""
        return restored(self.inner.rows(planes, ids, shape))


EXAMPLES = (
    Rotated(),
    Rotated(Integer(3, 64)),
    Rotated(Residual(2, 64)),
    Rotated(Mixed(Residual(1, None, columns="shared"), Columns(0.2), 4, "columns")),
)
