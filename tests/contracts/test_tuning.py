"""What tuning owes for every format: it starts at the packed weight, and ends at one that packs to the same values."""

import pytest
import torch

from bitwright.latent import TunedWeight
from bitwright.learning import Learning
from bitwright.protocols import Format, QTensor
from bitwright.registry import load, names
from bitwright.solvers.rtn import Rtn
from bitwright.turned import Turned

SHAPE = (24, 200)


def every_format() -> list[Format]:
    return [fmt for name in names("formats") for fmt in load("formats", name).EXAMPLES]


each = pytest.mark.parametrize("fmt", every_format(), ids=repr)


def matrix(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def towards(tuned: TunedWeight, gradient: torch.Tensor) -> list[torch.Tensor]:
    """A gradient of the decoded weight, none of what else a layer computes with."""
    return [gradient, *(torch.zeros_like(value) for value in tuned.values()[1:])]


def packed(fmt: Format) -> QTensor:
    return Rtn().solve(matrix(0), fmt, None)


@each
@pytest.mark.parametrize("remembers", [True, False])
def test_starts_at_the_packed_weight(fmt: Format, remembers: bool) -> None:
    """Encoding the latent weight anew changes nothing, though it lies nearer to the float weight where it may."""
    q = packed(fmt)
    original = matrix(0) + 0.3 * matrix(1)
    tuned = TunedWeight(q, original if remembers else None, Learning())
    assert torch.equal(tuned.value(), q.dequantize())
    tuned.encode()
    assert torch.equal(tuned.value(), q.dequantize())
    latent = tuned.moved.tensors["latent"]
    seen = fmt.turned if isinstance(fmt, Turned) else lambda x: x
    near, far = (seen(x) - seen(original) for x in (latent, q.dequantize()))
    assert bool((near.abs() <= far.abs() + 2e-6).all())
    assert remembers != torch.equal(latent, q.dequantize())


@each
def test_parameters_follow_their_gradient_and_what_was_computed_is_what_is_packed(fmt: Format) -> None:
    """With the same codes the value comes nearer to a target; with new ones it is still what the planes decode to."""
    target = 1.1 * packed(fmt).dequantize()
    tuned = TunedWeight(packed(fmt), matrix(0), Learning(rate=0.02, parameter_rate=0.004))
    for step in range(30):
        tuned.update(towards(tuned, tuned.value() - target), 1 - step / 30)
    assert float((tuned.value() - target).norm()) < 0.6 * float((packed(fmt).dequantize() - target).norm())
    codes = tuned.codes
    tuned.update(towards(tuned, matrix(3)), 200.0)
    tuned.encode()
    assert not torch.equal(tuned.codes, codes)
    planes = tuned.planes()
    assert fmt.flaw(planes, SHAPE) is None
    assert torch.equal(QTensor(fmt, SHAPE, planes).dequantize(), tuned.value())


@each
def test_state_holds_everything(fmt: Format) -> None:
    first, second = (TunedWeight(packed(fmt), None, Learning(rate=0.05)) for _ in range(2))
    for step in range(4):
        if step == 2:
            second.restore({key: value.clone() for key, value in first.state().items()})
        for tuned in (first, second)[: 1 + (step >= 2)]:
            tuned.update(towards(tuned, matrix(step)), 0.5)
            tuned.encode()
    assert all(torch.equal(plane, second.planes()[role]) for role, plane in first.planes().items())


@each
def test_steps_at_rate_zero_leave_no_trace(fmt: Format) -> None:
    """As when the time of a step is measured before the first one."""
    timed, fresh = (TunedWeight(packed(fmt), None, Learning()) for _ in range(2))
    for seed in range(2):
        timed.update(towards(timed, matrix(seed)), 0.0)
        timed.encode()
    timed.moved.forget()
    for tuned in (timed, fresh):
        tuned.update(towards(tuned, matrix(2)), 1.0)
    assert timed.state().keys() == fresh.state().keys()
    assert all(torch.equal(value, fresh.state()[key]) for key, value in timed.state().items())
