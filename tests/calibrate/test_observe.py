"""Grams: what massive tokens do to the level that damping is relative to."""

import torch

from bitwright.calibrate.observe import MASSIVE, Gram, hessian
from bitwright.linalg import inverse_cholesky


def _inputs() -> torch.Tensor:
    return torch.randn(400, 24, generator=torch.Generator().manual_seed(0))


def test_without_massive_tokens_the_level_is_the_mean_diagonal() -> None:
    h = hessian([Gram.of(_inputs()[:200]), Gram.of(_inputs()[200:])], "x")
    assert h is not None
    assert h.level is not None
    assert h.tokens == 400
    torch.testing.assert_close(h.level, float(h.diagonal.mean()), rtol=1e-5, atol=0)
    torch.testing.assert_close(h.factor(0.01), inverse_cholesky(h.matrix, 0.01)[0], rtol=1e-5, atol=1e-6)


def test_a_massive_token_is_in_the_sum_but_not_in_the_damping() -> None:
    x = _inputs()
    ordinary = hessian([Gram.of(x)], "x")
    x[0] = 1000 * x[0]
    h = hessian([Gram.of(x)], "x")
    assert ordinary is not None
    assert h is not None
    assert ordinary.level is not None
    assert h.level is not None
    assert h.diagonal.mean() > 1000 * ordinary.level
    assert ordinary.level < h.level < ordinary.level * (1 + 2 * MASSIVE / 400)
    added = h.factor(0.01).pinverse() @ h.factor(0.01).pinverse().t() - h.matrix.double()
    torch.testing.assert_close(added, 0.01 * h.level * torch.eye(24, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_grams_add_up() -> None:
    whole, first, second = (Gram.of(x) for x in (_inputs(), _inputs()[:200], _inputs()[200:]))
    both = first.plus(second)
    torch.testing.assert_close(both.sum, whole.sum, rtol=1e-5, atol=1e-3)
    assert both.tokens == whole.tokens
