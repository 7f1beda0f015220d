import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.evaluate.scores import concatenate, score_
from bitwright.runtime import native


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs by compiled steps and by torch."""
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda: (False, ""))
    elif not native.available()[0]:
        pytest.skip(native.available()[1])


def logits(n: int, vocabulary: int, scale: float = 3.0) -> Tensor:
    return torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(1)) * scale


def test_every_column_equals_its_definition_in_float64() -> None:
    z, parent = logits(300, 50), logits(300, 50, 2.0)
    targets = torch.arange(300) % 50
    p, q = torch.softmax(z.double(), -1), torch.softmax(parent.double(), -1)
    onehot = torch.nn.functional.one_hot(targets, 50)
    scores = score_(z.clone(), targets, torch.log_softmax(parent, -1))
    expected = {
        "nll": -p.gather(1, targets[:, None])[:, 0].log(),
        "confidence": p.amax(-1),
        "entropy": -(p * p.log()).sum(-1),
        "power": p.square().sum(-1),
        "brier": (p - onehot).square().sum(-1),
        "kl": (q * (q / p).log()).sum(-1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(scores, name), value.numpy(), atol=3e-6, rtol=2e-6, err_msg=name)
    assert (scores.top1 == z.argmax(-1).numpy()).all()
    assert (scores.correct == (z.argmax(-1) == targets).numpy()).all()


def test_log_probabilities_are_left_in_place_of_the_logits() -> None:
    z = logits(7, 20)
    expected = torch.log_softmax(z, -1)
    score_(z, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(z, expected, rtol=1e-6, atol=1e-6)


def test_chunks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.evaluate.scores.CHUNK", 4 * 1000)  # four rows
    z, parent = logits(10, 1000), torch.log_softmax(logits(10, 1000, 1.0), -1)
    targets = torch.arange(10)
    whole = score_(z.clone(), targets, parent)
    rows = concatenate(score_(z[i : i + 1].clone(), targets[i : i + 1], parent[i : i + 1]) for i in range(10))
    for name, column in vars(whole).items():
        np.testing.assert_allclose(column, getattr(rows, name), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("z", "target", "brier"),
    [
        (torch.zeros(1, 64), 3, 1 - 1 / 64),  # uniform
        (torch.eye(1, 64) * 200, 0, 0.0),  # certain and right
        (torch.eye(1, 64) * 200, 1, 2.0),  # certain and wrong
    ],
)
def test_brier_at_its_landmarks(z: Tensor, target: int, brier: float) -> None:
    assert score_(z, torch.tensor([target])).brier[0] == pytest.approx(brier, abs=1e-6)


def test_a_model_beside_itself_has_no_divergence_at_all() -> None:
    z, targets = logits(50, 1000), torch.zeros(50, dtype=torch.int64)
    parent = z.clone()
    score_(parent, targets)
    scores = score_(z, targets, parent)
    assert scores.kl is not None
    assert (scores.kl == 0).all()


def test_divergence_keeps_its_digits_between_close_models() -> None:
    z, targets = logits(50, 5000), torch.zeros(50, dtype=torch.int64)
    close = z + 1e-2 * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    p, q = torch.log_softmax(close.double(), -1), torch.log_softmax(z.double(), -1)
    exact = (q.exp() * (q - p)).sum(-1)
    scores = score_(close, targets, torch.log_softmax(z, -1))
    assert scores.kl is not None
    np.testing.assert_allclose(scores.kl, exact.numpy(), atol=1e-6)
    assert scores.kl.mean() == pytest.approx(exact.mean().item(), rel=0.01)
