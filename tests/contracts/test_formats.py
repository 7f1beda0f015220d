"""What every format owes, found by existing: exact bits, stable decoding, any shape, extreme values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.protocols import Format
from bitwright.registry import load, names
from bitwright.rotation import rotated_inputs
from bitwright.runtime.reference import integer_matmul, quantize_activations
from bitwright.solvers.rtn import Rtn
from bitwright.spec import from_spec, to_spec
from bitwright.turned import Turned


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


each = pytest.mark.parametrize("fmt", every_format(), ids=repr)
SHAPES = [(1, 20), (1, 1), (5, 33), (16, 576), (17, 20), (33, 300)]


@each
@given(rows=st.integers(1, 40), columns=st.integers(1, 300))
@settings(max_examples=15, deadline=None)
def test_predicted_bits_are_stored_bits(fmt: Format, rows: int, columns: int) -> None:
    planes = Rtn().solve(matrix(rows, columns), fmt, None).planes
    specs = fmt.planes((rows, columns))
    assert {k: (v.dtype, tuple(v.shape)) for k, v in planes.items()} == {
        k: (s.dtype, s.shape) for k, s in specs.items()
    }
    bits = fmt.bits((rows, columns))
    assert bits.total == 8 * sum(plane.nbytes for plane in planes.values())
    assert all(part >= 0 for part in bits.named().values())


@each
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_inverts_pack(fmt: Format, shape: tuple[int, int]) -> None:
    q = Rtn().solve(matrix(*shape), fmt, None)
    codes, params = fmt.unpack(q.planes, shape)
    again = fmt.pack(codes, params)
    assert all(torch.equal(again[role], plane) for role, plane in q.planes.items())


@each
def test_decoding_is_stable_under_the_same_parameters(fmt: Format) -> None:
    from bitwright.groups import per_column

    q = Rtn().solve(matrix(24, 200), fmt, None)
    codes, params = fmt.unpack(q.planes, (24, 200))
    spread = per_column(params, fmt.group, 200)
    decoded = fmt.decode(codes, spread)
    assert torch.equal(fmt.decode(fmt.encode(decoded, spread), spread), decoded)


@each
def test_encode_chooses_no_worse_than_any_other_code(fmt: Format) -> None:
    """The codes of another row never come nearer than those chosen, compared over columns that are coded jointly."""
    from bitwright.groups import groups, per_column

    w = matrix(16, 96)
    q = Rtn().solve(w, fmt, None)
    codes, params = fmt.unpack(q.planes, (16, 96))
    spread = per_column(params, fmt.group, 96)
    if isinstance(fmt, Turned):
        fmt, w = fmt.inner, fmt.turned(w)
    chosen = (fmt.decode(codes, spread) - w).abs()
    for seed in range(5):
        other = codes[torch.randperm(16, generator=torch.Generator().manual_seed(seed))]
        same_kind = (other >> 8 > 0) == (codes >> 8 > 0)  # a salient entry cannot become an ordinary one
        distance = (fmt.decode(other, spread) - w).abs()
        for columns in groups(96, fmt.step):
            counted = same_kind[:, columns].all(1)
            near, far = chosen[:, columns].norm(dim=1), distance[:, columns].norm(dim=1)
            assert bool((near <= far + 1e-4 * w.abs().max())[counted].all())


@each
def test_all_zero_groups_decode_to_zero(fmt: Format) -> None:
    w = matrix(8, 260)
    w[3] = 0.0
    w[:, 128:] = 0.0
    decoded = Rtn().solve(w, fmt, None).dequantize()
    assert torch.isfinite(decoded).all()
    assert torch.equal(decoded[3], torch.zeros(260)) or decoded[3].abs().max() < 1e-3
    assert torch.equal(Rtn().solve(torch.zeros(8, 96), fmt, None).dequantize(), torch.zeros(8, 96))


@each
@pytest.mark.parametrize("scale", [1e30, 1e-30, 65504.0, 6e-8])
def test_huge_and_tiny_values_stay_finite(fmt: Format, scale: float) -> None:
    decoded = Rtn().solve(matrix(8, 96) * scale, fmt, None).dequantize()
    assert torch.isfinite(decoded).all()


@each
def test_rows_are_the_rows_of_the_whole(fmt: Format) -> None:
    q = Rtn().solve(matrix(50, 100), fmt, None)
    ids = torch.tensor([3, 49, 0, 3, 17])
    assert torch.equal(fmt.rows(q.planes, ids, (50, 100)), q.dequantize()[ids])


@each
def test_spec_round_trip(fmt: Format) -> None:
    assert from_spec(to_spec(fmt)) == fmt


@each
def test_integer_arithmetic_is_the_product_of_decoded_weights(fmt: Format) -> None:
    """The terms that kernels see add up to the decoded matrix."""
    shape = (40, 200)
    q = Rtn().solve(matrix(*shape), fmt, None)
    group = fmt.terms(q.planes, shape)[0].activation_group
    x = matrix(3, 200, seed=1)
    operands = fmt.operands(q.planes, shape)
    seen_x = rotated_inputs(x) if operands[0].rotated else x
    expected = torch.zeros(3, 40, dtype=torch.float64)
    decoded = torch.zeros(shape)
    for operand in operands:
        span = shape[1] if operand.group is None else operand.group
        at = torch.arange(shape[1]) // span
        part = (operand.codes * operand.scale[:, at] + operand.min[:, at]) * (
            1 if operand.mask is None else operand.mask
        )
        inputs = torch.ones(shape[1]) if operand.inputs is None else operand.inputs.float()
        codes, scales = quantize_activations(seen_x * inputs, group)
        seen = codes * scales.repeat_interleave(group, dim=1)[:, : shape[1]]
        expected += seen.double() @ part.double().t()
        decoded += part * inputs
    whole = fmt.turned(q.dequantize()) if isinstance(fmt, Turned) else q.dequantize()
    assert (decoded - whole).abs().max() < 1e-6 * decoded.abs().max()
    found = integer_matmul(x, operands, group).double()
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@each
def test_continuous_parameters_are_those_that_storage_keeps(fmt: Format) -> None:
    """Moved a little, they come back from storage as `stored` says, and gradients reach each of them."""
    from bitwright.groups import per_column

    shape = (24, 200)
    codes, params = fmt.unpack(Rtn().solve(matrix(*shape), fmt, None).planes, shape)
    moved = {k: (params[k] * 1.0003).requires_grad_() for k in fmt.continuous}
    kept = fmt.stored(params | moved)
    assert kept.keys() == params.keys()
    again, back = fmt.unpack(fmt.pack(codes, {k: v.detach() for k, v in kept.items()}), shape)
    assert torch.equal(again, codes)
    assert all(torch.equal(back[k], v) for k, v in kept.items())
    value = fmt.decode(codes, per_column(kept, fmt.group, shape[1]))
    for gradient in torch.autograd.grad(value, list(moved.values()), matrix(*shape, seed=1)):
        assert bool(gradient.abs().sum() > 0)
