"""The divergence and its gradient are those of torch."""

import pytest
import torch
import torch.nn.functional as F

from bitwright.tune import loss
from bitwright.tune.loss import divergence


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_equals_the_divergence_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    s, t = (torch.randn(7, 23, requires_grad=needs) for needs in (True, False))
    expected = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
    (wanted,) = torch.autograd.grad(3 * expected, s)
    found = divergence(s, t.clone())
    (gradient,) = torch.autograd.grad(3 * found, s)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, wanted, atol=1e-6)


def test_is_zero_only_for_equal_distributions() -> None:
    t = torch.randn(4, 9)
    assert abs(float(divergence(t + 5, t.clone()))) < 1e-6
    assert float(divergence(t.flip(1), t.clone())) > 0.1
