"""AdaQuant's solver where it differs from others, and the recipe end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.calibrate.tokens import builtin_text
from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.formats.integer import Integer
from bitwright.latent import TunedWeight
from bitwright.learning import Learning
from bitwright.linalg import Hessian
from bitwright.recipes.adaquant_ip import MENU, TRAINING
from bitwright.solvers.adaquant import Adaquant
from bitwright.solvers.rtn import Rtn

FAST = {"solver.each": '{"kind": "adaquant", "steps": 3}'}


def test_a_weight_crosses_steps_to_absorb_the_error_of_another() -> None:
    """Inputs come in equal pairs: the sum of two codes counts, which rounding each to nearest cannot know."""
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=1)
    w = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    hessian, fmt = Hessian(2 / 200 * x.T @ x, 200), Integer(2, 32, "symmetric", search=10)
    rounded = Rtn().solve(w, fmt, hessian)
    solved = Adaquant(start=Rtn(), steps=400, rate=0.03, parameter_rate=0.0).solve(w, fmt, hessian)
    assert hessian.error(solved.dequantize() - w) < 0.5 * hessian.error(rounded.dequantize() - w)
    codes = [fmt.unpack(q.planes, q.shape)[0] for q in (rounded, solved)]
    assert not torch.equal(*codes)


def test_ranges_alone_learn_at_rate_zero() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    hessian, fmt = Hessian(2 / 200 * x.T @ x, 200), Integer(3, 32)
    before = Rtn().solve(w, fmt, hessian)
    after = Adaquant(start=Rtn(), steps=60, rate=0.0, parameter_rate=0.01).solve(w, fmt, hessian)
    assert hessian.error(after.dequantize() - w) < 0.9 * hessian.error(before.dequantize() - w)
    codes, params = fmt.unpack(after.planes, after.shape)
    from bitwright.groups import per_column

    assert torch.equal(codes, fmt.encode(w, per_column(params, 32, 64)))  # still rounding, in better ranges


@pytest.mark.parametrize("propagate", ["true", "false"])
def test_bits_follow_the_measured_loss(tiny_model: Path, tmp_path: Path, monkeypatch: Any, propagate: str) -> None:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(builtin_text()[1][:20_000])
    job = Job(
        model=str(tiny_model), out=tmp_path / "out", recipe="adaquant-ip", data=tmp_path / "text.txt", tokens=256,
        length=64, target_bpw=4.0, settings=FAST | {"propagate": propagate},
    )  # fmt: skip
    result = quantize(job)
    assert result.decision is not None
    assert result.decision.score == MENU.score == "measured"
    assert result.manifest.totals.stored_bits_per_weight <= 4.0
    assert result.decision.loss <= (result.decision.uniform_loss or torch.inf)


def test_training_moves_norms_and_biases_alone() -> None:
    """The paper's bias tuning leaves every code and scale as it is."""
    q = Rtn().solve(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), Integer(8, 64), None)
    tuned = TunedWeight(q, None, TRAINING)
    for _ in range(3):
        tuned.update([torch.randn(8, 64)], 1.0)
        tuned.encode()
    assert all(torch.equal(plane, q.planes[role]) for role, plane in tuned.planes().items())
    assert TRAINING.vector_rate > 0
    assert isinstance(TRAINING, Learning)
