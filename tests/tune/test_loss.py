"""The divergence and its gradient are those of torch."""

import pytest
import torch
import torch.nn.functional as F

from bitwright.runtime import native
from bitwright.tune import loss
from bitwright.tune.loss import divergence


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: (False, "switched off"))


@pytest.mark.parametrize("chunk", [None, 1, 50, 1 << 20])
def test_equals_the_divergence_of_torch(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunk is not None:
        by_torch(monkeypatch)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ambiguity", [0.0, 0.8])
def test_compiled_equals_torch(dtype: torch.dtype, ambiguity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available()[0]:
        pytest.skip("no compiled kernels here")
    student = (4 * torch.randn(5, 3001)).to(dtype).requires_grad_()
    parent = (student.detach().float() + torch.randn(5, 3001)).to(dtype)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        found = divergence(student, parent.clone(), ambiguity, 0.5)
        return found, torch.autograd.grad(2 * found, student)[0].float()

    compiled = both()
    by_torch(monkeypatch)
    expected = both()
    assert expected[0].item() > 0.1
    assert torch.allclose(compiled[0], expected[0], rtol=1e-5)
    # bfloat16 has 8 bits: a value near the middle between two may be rounded to either.
    assert torch.allclose(compiled[1], expected[1], rtol=2**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-9)
