"""Tokens of an expert count with their routing weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.calibrate.observe import Run, expert_grams
from bitwright.errors import Refused

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
UP, DOWN = (torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) for shape in ((10, 8), (8, 5)))
CHOICE = torch.arange(12) % 2  # the third expert is never taken


def block(weights: Tensor) -> Run:
    """Gated experts as transformers has them: up and gate, down, times the routing weight of the token."""

    def run(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in (0, 1):
            rows = torch.where(e == CHOICE)[0]
            gate, up = F.linear(x[rows], UP[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, DOWN[e])
            out.index_add_(0, rows, y * weights[rows, None])
        return out

    return run


@pytest.mark.parametrize("stack", [UP, DOWN], ids=["up", "down"])
def test_equal_weights_change_nothing_and_a_weight_of_two_is_a_token_twice(stack: Tensor) -> None:
    plain = expert_grams(block(torch.ones(12)), stack, X)
    assert plain.keys() == {0, 1}
    same = expert_grams(block(torch.ones(12)), stack, X, affinity=1.0)
    for e in plain:
        torch.testing.assert_close(same[e].sum, plain[e].sum)
        assert same[e].tokens == plain[e].tokens == 6
    double = expert_grams(block(torch.full((12,), 2.0)), stack, X, affinity=1.0)
    torch.testing.assert_close(double[0].sum, 2 * plain[0].sum)


def test_weights_of_zero_leave_tokens_out() -> None:
    half = (torch.arange(12) < 6).float()
    left = expert_grams(block(half), UP, X, affinity=1.0)
    for e in (0, 1):
        rows = X[(e == CHOICE) & (torch.arange(12) < 6)]
        torch.testing.assert_close(left[e].sum, rows.T @ rows)


def test_experts_without_routing_weights_are_refused() -> None:
    with pytest.raises(Refused, match="not multiplied by routing weights"):
        expert_grams(lambda x: F.linear(x, UP[0]), UP, X, affinity=1.0)
