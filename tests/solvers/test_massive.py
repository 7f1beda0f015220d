"""Solvers that go by a damped Hessian: a token of massive activation must not decide how strongly it is damped."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bitwright.calibrate.observe import Gram, hessian
from bitwright.formats.integer import Integer
from bitwright.linalg import Hessian
from bitwright.protocols import Solver
from bitwright.solvers.descent import Descent
from bitwright.solvers.gptq import Gptq

COLUMNS, TOKENS, TIMES = 96, 1024, 500
DAMPING = 0.1
START = Gptq(damping=DAMPING)


@cache
def inputs() -> Tensor:
    """Correlated inputs float32 [TOKENS, COLUMNS]."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator)
    x = torch.randn(TOKENS, COLUMNS, generator=generator) @ (mixing * torch.logspace(0, -2, COLUMNS)[:, None])
    return x / x.square().mean().sqrt()


def seen(massive: bool) -> Hessian:
    x = inputs().clone()
    if massive:
        x[0] *= (TIMES * TOKENS) ** 0.5  # as much energy as TIMES texts of ordinary tokens
    found = hessian([Gram.of(x)], "x")
    assert found is not None
    return found


def test_ordinary_tokens_gain_beside_a_massive_one() -> None:
    w = torch.randn(32, COLUMNS, generator=torch.Generator().manual_seed(1))
    both, ordinary = seen(massive=True), seen(massive=False)

    def lost(by: Solver) -> float:
        return ordinary.error(by.solve(w, Integer(2, COLUMNS), both).dequantize() - w)

    assert lost(Descent(START, damping=DAMPING)) < 0.8 * lost(START)


def test_what_is_damped_is_what_factors_are_of() -> None:
    h = seen(massive=True)
    inverse = torch.linalg.inv(h.damped(DAMPING).double())
    torch.testing.assert_close(h.factor(DAMPING).t() @ h.factor(DAMPING), inverse, rtol=1e-3, atol=1e-4)
    assert h.level is not None
    added = h.damped(DAMPING).diagonal() - h.diagonal
    torch.testing.assert_close(added, torch.full_like(added, DAMPING * h.level), rtol=1e-3, atol=1e-3)
