"""What formats store is multiplied to the bits that the torch arithmetic gives."""

from __future__ import annotations

import pytest
import torch

from bitwright import _core
from bitwright.protocols import Format
from bitwright.registry import load, names
from bitwright.runtime.native import native_matrix
from bitwright.runtime.reference import integer_matmul
from bitwright.solvers.rtn import Rtn


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


@pytest.mark.parametrize("fmt", every_format(), ids=repr)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (48, 576)])
def test_kernels_equal_torch(fmt: Format, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[1])
    q = Rtn().solve(torch.randn(*shape, generator=generator), fmt, None)
    x = torch.randn(19, shape[1], generator=generator)
    terms = fmt.terms(q.planes, shape)
    expected = integer_matmul(x, fmt.operands(q.planes, shape), terms[0].activation_group)
    matrix = native_matrix(terms, shape, None)
    for isa in _core.cpu_info()["levels"]:
        _core.set_isa(isa)
        assert torch.equal(matrix.matmul(x), expected)
        assert torch.equal(matrix.matmul(x[:1]), expected[:1])
