"""Rotated weights: an exact change of basis, better codes where columns stand out, the same bits."""

import pytest
import torch

from bitwright import rotation
from bitwright.errors import BadField, Refused
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.mixture import Mixture
from bitwright.formats.nested import Nested
from bitwright.formats.rotated import Rotated
from bitwright.formats.trellis import Trellis
from bitwright.latent import TunedWeight
from bitwright.learning import Learning
from bitwright.linalg import Hessian
from bitwright.protocols import Format
from bitwright.runtime.native import available, native_matrix
from bitwright.runtime.reference import integer_matmul
from bitwright.solvers.gptq import Gptq
from bitwright.solvers.rtn import Rtn
from bitwright.transforms import awq

COLUMNS = (1, 2, 7, 8, 20, 48, 100, 576, 640, 1536, 2048)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", COLUMNS)
def test_products_stay_and_lengths_grow_by_one_factor(columns: int) -> None:
    w, x = numbers(5, columns), numbers(3, columns, seed=1)
    turned = rotation.rotated_inputs(x)
    assert (turned @ rotation.rotated(w).t() - x @ w.t()).abs().max() < 1e-5 * columns
    assert (rotation.restored(rotation.rotated(w)) - w).abs().max() < 1e-5
    growth = turned.norm(dim=1) / x.norm(dim=1)
    odd = rotation.block_of(columns).bit_length() % 2 == 0  # an odd power of two
    assert growth.allclose(torch.full_like(growth, 2.0 ** (0.5 if odd else 0.0)), rtol=1e-4)


def test_blocks_are_powers_of_two_that_divide_the_columns() -> None:
    assert [rotation.block_of(n) for n in (7, 576, 640, 1536, 1024, 4096)] == [1, 64, 128, 512, 512, 512]
    x = torch.zeros(1, 576)
    x[0, 70] = 1.0
    assert len(rotation.rotated_inputs(x).nonzero()) == 576  # all blocks have something of it


def test_blocks_are_mixed_where_there_are_few() -> None:
    assert [rotation.across(n) is None for n in (64, 512, 60, 125, 1030)] == [True, True, False, True, True]
    for columns in (20, 576, 1024, 1536):
        matrix = rotation.across(columns)
        assert matrix is not None
        assert (matrix @ matrix - torch.eye(len(matrix))).abs().max() < 1e-6
        assert torch.equal(matrix, matrix.t())


def test_signs_are_part_of_the_format() -> None:
    assert "".join("+-"[int(f < 0)] for f in rotation.factors(64)) == (
        "+-+++--++--+-++--+-++--+-+---++-----++-+---+-+---+-+++-+++-+++--"
    )
    assert rotation.factors(64).abs().unique().tolist() == [0.125]
    assert rotation.factors(128).abs().unique().tolist() == [0.125]


@pytest.mark.parametrize("columns", COLUMNS)
def test_compiled_and_plain_sums_are_equal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = numbers(6, columns)
    compiled = [f(w) for f in (rotation.rotated, rotation.restored, rotation.rotated_inputs)]
    monkeypatch.setattr(rotation, "_core", None)
    plain = [f(w) for f in (rotation.rotated, rotation.restored, rotation.rotated_inputs)]
    assert all(torch.equal(a, b) for a, b in zip(compiled, plain, strict=True))


def test_gradient_of_decoding_is_that_of_the_coded_weight() -> None:
    w = numbers(4, 96).double().requires_grad_()
    assert torch.autograd.gradcheck(rotation.restored, (w,))


def test_columns_that_stand_out_cost_less() -> None:
    """A few large weights a row: rotated, they no longer set the steps of the grid for their neighbours."""
    w = numbers(64, 512) * 0.02
    w[:, ::100] *= 20
    plain, turned = (Rtn().solve(w, fmt, None).dequantize() for fmt in (Integer(3, 128), Rotated(Integer(3, 128))))
    assert (turned - w).norm() < 0.7 * (plain - w).norm()


def test_a_loud_block_costs_less() -> None:
    """One head of nine is four times as large: mixed with the others, it no longer sets the scale of their rows."""
    w = numbers(64, 576)
    w[:, 256:320] *= 4
    plain, turned = (Rtn().solve(w, fmt, None).dequantize() for fmt in (Trellis(32), Rotated(Trellis(32))))
    assert (turned - w).norm() < 0.9 * (plain - w).norm()


def test_hessian_of_rotated_inputs() -> None:
    x = numbers(300, 96)
    x[:, 5] *= 10
    h = Hessian(2 / 300 * x.t() @ x, 300, level=3.0)
    turned = rotation.rotated_inputs(x)
    expected = 2 / 300 * turned.t() @ turned
    assert (h.rotated().matrix - expected).abs().max() < 1e-5 * expected.abs().max()
    assert h.rotated().diagonal.mean() / h.diagonal.mean() == pytest.approx((h.rotated().level or 0) / 3.0, rel=1e-4)
    w = numbers(8, 96, seed=1)
    assert h.rotated().error(rotation.rotated(w)) == pytest.approx(h.error(w), rel=1e-4)


def activation_group(fmt: Rotated, columns: int) -> int:
    """That of weights' groups, or whole rows in equal parts of up to 640 columns."""
    whole = {(28, 100): 112, (28, 576): 588, (28, 1250): 644, (1, 100): 128, (1, 576): 576, (1, 1250): 640}
    return fmt.group or whole[fmt.step, columns]


@pytest.mark.parametrize("fmt", [Rotated(Integer(2, 64)), Rotated(Mixed()), Rotated(Trellis(28))], ids=repr)
@pytest.mark.parametrize("columns", [100, 576, 1250])
def test_every_engine_multiplies_rotated_inputs(fmt: Rotated, columns: int) -> None:
    w, x = numbers(40, columns), numbers(19, columns, seed=1)
    q = Gptq().solve(w, fmt, None)
    terms = fmt.terms(q.planes, q.shape)
    assert {term.activation_group for term in terms} == {activation_group(fmt, columns)}
    found = integer_matmul(x, fmt.operands(q.planes, q.shape), terms[0].activation_group)
    exact = x @ q.dequantize().t()
    assert (found - exact).norm() < 0.02 * exact.norm()
    if not available()[0]:
        pytest.skip("no compiled kernels here")
    matrix = native_matrix(terms, q.shape, None)
    assert torch.equal(matrix.matmul(x), found)
    assert torch.equal(torch.from_numpy(matrix.core.reference(x)), found)


@pytest.mark.parametrize("inner", [Rotated(), Mixture(), Nested()], ids=lambda fmt: fmt.kind)
def test_what_cannot_be_rotated_is_refused(inner: Format) -> None:
    with pytest.raises(BadField, match="inner"):
        Rotated(inner)


def test_inputs_that_never_fire_do_not_disturb_others() -> None:
    """Their weights may be as large as they like: nobody multiplies by them."""
    x = numbers(400, 256)
    x[:, 5::32] = 0
    hessian = Hessian(2 / 400 * x.t() @ x, 400)
    w = numbers(16, 256, seed=1)
    w[:, 5::32] *= 50
    fmt = Rotated(Integer(3, 64))
    live = hessian.error(w)
    assert hessian.error(Gptq().solve(w, fmt, hessian).dequantize() - w) < 0.05 * live


def test_diagonal_of_a_diagonal() -> None:
    h = numbers(1536).square()
    exact = Hessian(torch.diag(h), 1).rotated().diagonal
    assert Rotated().seen_diagonal(h).allclose(exact, rtol=1e-4)


def test_memory_of_the_original_keeps_every_code() -> None:
    for seed in range(4):
        w = numbers(64, 512, seed=seed)
        q = Rtn().solve(w, Rotated(Integer(3, 64)), None)
        tuned = TunedWeight(q, w, Learning())
        assert torch.equal(tuned.value(), q.dequantize())


def test_the_same_bits() -> None:
    fmt = Rotated(Integer(3, 64))
    assert fmt.bits((40, 576)) == fmt.inner.bits((40, 576))


def test_frozen_entries_are_refused() -> None:
    q = Rtn().solve(numbers(16, 128), Rotated(Mixed()), None)
    with pytest.raises(Refused, match="rotated"):
        TunedWeight(q, None, Learning(frozen=("mask",)))


def test_awq_sees_a_rotated_weight_as_its_codes_do() -> None:
    w, h = numbers(32, 128) * 0.02, numbers(128, seed=2).square() + 0.1
    w[:, ::50] *= 20
    fmt = Rotated(Integer(3, 64))
    near = awq._decoded(w, fmt, h)
    wide = Rtn(weighted=True).solve(w, fmt, Hessian(torch.diag(h), 1)).dequantize()
    assert (near - w).norm() == pytest.approx(float((wide - w).norm()), rel=0.02)
