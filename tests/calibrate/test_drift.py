"""Targets for inputs that have drifted: the identity of GPTAQ, and what must not change them."""

import torch

from bitwright.calibrate.drift import drift, made_up
from bitwright.calibrate.observe import Gram, hessian
from bitwright.linalg import Hessian


def _tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight [12, 24], its inputs [4, 100, 24], and the same turned a little, with noise."""
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(12, 24, generator=g), torch.randn(4, 100, 24, generator=g)
    turned = torch.eye(24) + 0.2 * torch.randn(24, 24, generator=g)
    return w, x, x @ turned + 0.1 * torch.randn(x.shape, generator=g)


def _seen(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, Hessian]:
    h = hessian([Gram.of(y)], "y")
    assert h is not None
    return drift(x, y) * (2 / h.tokens), h


def test_the_error_against_the_float_model_is_that_against_the_target_and_a_constant() -> None:
    w, x, y = _tensors()
    target = made_up(w, *_seen(x, y), share=1.0, damping=1e-9).double()
    rests = []
    for seed in range(3):
        q = w + 0.3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(seed))
        wanted, given = x.double() @ w.double().T, y.double() @ q.double().T
        rests.append(float((wanted - given).square().sum() - (y.double() @ (target - q).T).square().sum()))
    assert rests[0] > 0
    assert max(rests) - min(rests) < 1e-3 * rests[0]


def test_a_share_goes_a_part_of_the_way_and_no_drift_goes_nowhere() -> None:
    w, x, y = _tensors()
    moved, h = _seen(x, y)
    whole, half = (made_up(w, moved, h, share) - w for share in (1.0, 0.5))
    assert float(whole.norm()) > 0.1 * float(w.norm())
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(made_up(w, *_seen(y, y), share=1.0), w)


def test_a_massive_token_does_not_decide_for_the_others() -> None:
    w, x, y = _tensors()
    ordinary = made_up(w, *_seen(x, y), share=1.0)
    x[0, 0], y[0, 0] = 1000 * x[0, 0], 1000 * y[0, 0]
    found = made_up(w, *_seen(x, y), share=1.0)

    def lost(q: torch.Tensor) -> float:
        return float((x[1:] @ w.T - y[1:] @ q.T).square().sum())

    assert lost(ordinary) < 0.5 * lost(w)
    assert lost(found) < 0.6 * lost(w)
