"""Codebooks: the values that papers name, the nearest of them, and either sign where a table is lopsided."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import BadField
from bitwright.formats.codebook import NF4, Codebook
from bitwright.solvers.rtn import Rtn


def test_nf4_values_are_rounded_to_127ths() -> None:
    fmt = Codebook("nf4", None)
    values = fmt.decode(torch.arange(16), {"scale": torch.tensor(1 / 127)})
    assert (values - torch.tensor(NF4)).abs().max() <= 0.5 / 127 + 1e-6


@pytest.mark.parametrize(("values", "special"), [("fp4-resolution", 5.0), ("fp4-asymmetry", 8.0)])
def test_special_value_follows_the_sign_of_the_scale(values: str, special: float) -> None:
    fmt = Codebook(values, 32)  # type: ignore[arg-type]
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, special, -0.5, -1, -1.5, -2, -3, -4, -6]).repeat(2)
    w = torch.stack([grid, -grid])
    made = Rtn().solve(w, fmt, None)
    assert (made.dequantize() - w).abs().max() < 2e-3
    assert (fmt.unpack(made.planes, (2, 32))[1]["scale"].sign().flatten() == torch.tensor([1.0, -1.0])).all()


def test_codes_are_the_nearest_values() -> None:
    fmt = Codebook("nf4", 64)
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    params = {"scale": torch.full((20, 1), -0.02)}
    all_values = fmt.decode(torch.arange(16), {"scale": torch.tensor(-0.02)})
    best = (w[:, :, None] - all_values).abs().amin(2)
    torch.testing.assert_close((w - fmt.decode(fmt.encode(w, params), params)).abs(), best)


def test_better_than_even_steps_on_gaussian_weights() -> None:
    from bitwright.formats.integer import Integer

    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    error = {fmt: (Rtn().solve(w, fmt, None).dequantize() - w).square().mean() for fmt in (Codebook(), Integer(4, 64))}
    assert error[Codebook()] < 0.95 * error[Integer(4, 64)]


def test_refusals() -> None:
    with pytest.raises(BadField, match="multiple of 32"):
        Codebook(group=40)
    with pytest.raises(BadField, match="candidates"):
        Codebook(search=101)
