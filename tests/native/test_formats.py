"""What formats store is multiplied to the bits that the torch arithmetic gives."""

from __future__ import annotations

import pytest
import torch

from bitwright import _core
from bitwright.formats.mixed import Mixed
from bitwright.formats.residual import Residual
from bitwright.formats.rotated import Rotated
from bitwright.linalg import Hessian
from bitwright.partitions.columns import Columns
from bitwright.protocols import Format, QTensor
from bitwright.registry import load, names
from bitwright.rotation import restored
from bitwright.runtime.native import native_matrix
from bitwright.runtime.reference import integer_matmul
from bitwright.solvers.rtn import Rtn


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


@pytest.mark.parametrize("fmt", every_format(), ids=repr)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (48, 576)])
def test_kernels_equal_torch(fmt: Format, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[1])
    same(Rtn().solve(torch.randn(*shape, generator=generator), fmt, None), generator)


def test_scattered_columns_of_rotated_inputs_equal_torch() -> None:
    """Codes of picked columns begin a unit with every activation group, which rotated inputs have larger ones of."""
    generator = torch.Generator().manual_seed(0)
    fmt = Rotated(Mixed(Residual(1, None, columns="shared"), Columns(0.2), 4, "columns"))
    energy = torch.diag(torch.rand(576, generator=generator) + 0.1)
    seen = Hessian(restored(restored(energy).t().contiguous()).t().contiguous(), 1)  # energy, once it is rotated
    q = Rtn(weighted=True).solve(torch.randn(48, 576, generator=generator), fmt, seen)
    picked = fmt.terms(q.planes, q.shape)[-1].picked
    assert (picked.diff() > 1).sum() > 50
    same(q, generator)


def same(q: QTensor, generator: torch.Generator) -> None:
    x = torch.randn(19, q.shape[1], generator=generator)
    terms = q.format.terms(q.planes, q.shape)
    expected = integer_matmul(x, q.format.operands(q.planes, q.shape), terms[0].activation_group)
    matrix = native_matrix(terms, q.shape, None)
    for isa in _core.cpu_info()["levels"]:
        _core.set_isa(isa)
        assert torch.equal(matrix.matmul(x), expected)
        assert torch.equal(matrix.matmul(x[:1]), expected[:1])
