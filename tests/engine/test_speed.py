"""Speed as a limit: kernels are timed once, formats meet it, and what is too fast says by how much.

Times are made up here: each byte of a product takes two nanoseconds alone and one in a step, and a step 50 microseconds
more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.engine import speed
from bitwright.engine.job import Job
from bitwright.engine.run import prepare, quantize
from bitwright.errors import BadInput, Refused, WorkFailed
from bitwright.recipes.gptq import MENU
from bitwright.runtime import native
from bitwright.runtime.latency import product_seconds, step_seconds
from bitwright.runtime.load import load

pytestmark = pytest.mark.skipif(not native.available()[0], reason="no compiled kernels")
REST = 50_000


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path, text: Path) -> Callable[..., Any]:
    """timed(min_speed=...) -> plan, with made-up times; `timed.products` are those that were measured."""
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    products: list[str] = []

    def product(fmt: Any, shape: tuple[int, int], stretch: int) -> float:
        products.append(f"{fmt} {shape}")
        return 2e-9 * fmt.bits(shape).bytes

    def step(model: Any, threads: int) -> float:
        sizes = [m.format.bits(m.shape).bytes for m in model.modules() if type(m).__name__ in ("QLinear", "TiedHead")]
        return (REST + sum(sizes)) * 1e-9

    monkeypatch.setattr(speed, "product_seconds", product)
    monkeypatch.setattr(speed, "step_seconds", step)

    def go(**fields: Any) -> Any:
        job = Job(model=str(tiny_model), out=tmp_path / "out", data=text, tokens=256, length=64, **fields)
        return prepare(job)[2]

    go.products = products  # type: ignore[attr-defined]
    return go


def nanoseconds(plan: Any) -> int:
    return REST + sum(fmt.bits(weight.shape).bytes for (_, fmt), weight in zip(
        plan.formats.items(), plan.contents.quantization.weights, strict=True
    ))  # fmt: skip


def test_a_speed_is_met_as_predicted_and_measured_once(timed: Any) -> None:
    plan = timed(min_speed=12_000)
    assert plan.decision.tokens_per_second == pytest.approx(1e9 / nanoseconds(plan))
    assert 12_000 <= plan.decision.tokens_per_second < 12_200
    assert plan.decision.loss <= plan.decision.uniform_loss
    assert plan.decision.uniform_tokens_per_second >= 12_000
    measured = len(timed.products)
    assert measured == len(set(timed.products)) > len(MENU.formats)
    faster = timed(min_speed=13_000)
    assert faster.decision.loss > plan.decision.loss
    assert len(timed.products) == measured


def test_speed_goes_with_other_limits(timed: Any) -> None:
    size = timed(min_speed=12_000).file_bytes - 2000
    both = timed(min_speed=12_000, target_bytes=size)
    assert both.file_bytes <= size
    assert both.decision.tokens_per_second >= 12_000
    kl = timed(min_speed=12_000, max_kl=both.decision.loss)
    assert kl.decision.loss <= both.decision.loss
    assert kl.decision.tokens_per_second >= 12_000
    bits = timed(min_speed=12_000, target_bpw=3.0)
    assert bits.stored_bits_per_weight <= 3.0


def test_too_fast_says_by_how_much(timed: Any) -> None:
    with pytest.raises(Refused, match=r"90000.* tokens/s cannot be reached .* fastest choice makes 14,8.. tokens/s"):
        timed(min_speed=90_000)
    with pytest.raises(BadInput, match="does not spread"):
        timed(min_speed=10, recipe="rtn")


def test_bit_operations_are_a_limit(timed: Any) -> None:
    free = timed(target_bytes=70_000).decision.bit_operations
    plan = timed(target_bytes=70_000, max_bit_operations=free * 3 // 4)
    codes = sum(fmt.bits(w.shape).codes for fmt, w in zip(
        plan.formats.values(), plan.contents.quantization.weights, strict=True
    ))  # fmt: skip
    assert plan.decision.bit_operations == 8 * codes <= free * 3 // 4
    with pytest.raises(Refused, match="giga bit operations too few"):
        timed(max_bit_operations=1000)


def test_products_can_be_timed() -> None:
    for fmt in (MENU.formats[0], *MENU.formats[-2:], MENU.tables[-1]):
        assert 0 < product_seconds(fmt, (48, 320), 1 << 14) < 1


def test_a_busy_machine_is_told_and_nothing_kept(timed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "step_seconds", lambda model, threads: 1e-3)
    with pytest.raises(WorkFailed, match="too busy"):
        timed(min_speed=10)
    assert not list((tmp_path / "cache" / "latency").iterdir())


def test_a_real_step_is_timed(tiny_model: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "made", recipe="rtn", bits=4.5)
    assert 0 < step_seconds(load(tmp_path / "made"), 1) < 1


def test_the_speed_is_measured_on_what_was_written(timed: Any, text: Path, tiny_model: Path, tmp_path: Path) -> None:
    job = Job(model=str(tiny_model), out=tmp_path / "out", data=text, tokens=256, length=64, min_speed=12_000)
    result = quantize(job)
    assert result.decision is not None
    assert result.decision.tokens_per_second == pytest.approx(12_000, rel=0.02)
    assert result.tokens_per_second > 0
