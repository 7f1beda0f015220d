"""Stacks of residual blocks: what the specification of BitStack asks beyond the contracts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.stack import Stack
from bitwright.linalg import Hessian
from bitwright.protocols import Elastic, QTensor
from bitwright.solvers.descent import Descent
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.rtn import Rtn
from bitwright.solvers.successive import Successive

SHAPE = (48, 96)


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    return normal(*SHAPE) * normal(48, 1, 1).exp() * normal(1, 96, 2).exp()


@pytest.fixture(scope="module")
def hessian() -> Hessian:
    """Correlated inputs, some of them large."""
    x = normal(400, 96, 3) @ normal(96, 96, 4)
    x[:, ::10] *= 8
    return Hessian(2 / 400 * x.T @ x, 400)


def prefix(q: QTensor, count: int) -> torch.Tensor:
    assert isinstance(q.format, Elastic)
    fmt = q.format.prefix(count)
    return QTensor(fmt, q.shape, {role: q.planes[role] for role in fmt.planes(q.shape)}).dequantize()


@pytest.mark.parametrize("rank", [1, 4])
def test_a_block_leaves_the_other_singular_values_of_the_magnitudes(weights: torch.Tensor, rank: int) -> None:
    q = Successive(Rtn()).solve(weights, Stack(4, rank), None)
    rest, left = weights, []
    for block in range(1, 5):
        energy = torch.linalg.svdvals(rest.abs()).square()
        rest = weights - prefix(q, block)
        left.append(float(rest.square().sum()))
        assert left[-1] == pytest.approx(float(energy[rank:].sum()), rel=1e-5 if rank == 1 else 1e-2)
    assert all(after < before for before, after in pairwise(left))


def test_signs_times_a_product_are_one_block() -> None:
    signs = torch.where(normal(*SHAPE, 5) < 0, -1.0, 1.0)
    for rank in (1, 3):
        exact = signs * ((normal(48, rank, 6).abs() + 0.1) @ (normal(rank, 96, 7).abs() + 0.1))
        rest = Rtn().solve(exact, Stack(1, rank), None).dequantize() - exact
        assert float(rest.norm() / exact.norm()) < 2e-3  # what f16 leaves


def test_every_prefix_is_the_one_before_it_and_one_block(weights: torch.Tensor, hessian: Hessian) -> None:
    fmt = Stack(4)
    q = Successive().solve(weights, fmt, hessian)
    assert torch.equal(prefix(q, 4), q.dequantize())
    for block in range(1, 4):
        one = {role: q.planes[name] for role, name in fmt.roles(block).items()}
        alone = QTensor(fmt.prefix(1), SHAPE, one).dequantize()
        assert torch.equal(prefix(q, block) + alone, prefix(q, block + 1))
    shorter = Successive().solve(weights, Stack(2), hessian)
    assert torch.equal(shorter.dequantize(), prefix(q, 2))


def test_activation_norms_and_compensation_lower_the_output_error(weights: torch.Tensor, hessian: Hessian) -> None:
    """Of every prefix: plain rounding, rounding under the norms of the inputs, the whole Hessian, descent after it."""
    solvers = (Rtn(), Rtn(weighted=True), Gptq(), Descent(sweeps=2))
    found = [Successive(each).solve(weights, Stack(3), hessian) for each in solvers]
    for block in (1, 2, 3):
        errors = [hessian.error(prefix(q, block) - weights) for q in found]
        assert errors == sorted(errors, reverse=True), block


def test_rank_lowers_the_error_and_costs_what_the_paper_counts(weights: torch.Tensor) -> None:
    errors = [float((Rtn().solve(weights, Stack(1, k), None).dequantize() - weights).norm()) for k in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    for shape, bits in (
        ((4096, 4096), 1.125),
        ((11008, 4096), 1.0858),
        ((14336, 4096), 1.0804),
        ((1024, 4096), 1.3125),
    ):
        assert Stack(1, 16).bits(shape).total / (shape[0] * shape[1]) == pytest.approx(bits, abs=5e-5)


def test_formats_that_cannot_be() -> None:
    for fields in ({"blocks": 0}, {"blocks": 9}, {"rank": 0}, {"blocks": 2, "rank": 9}):
        with pytest.raises(BadField):
            Stack(**fields)
