"""Which level is used, and what happens where one gives wrong results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tests.native import packing

from bitwright import _core
from bitwright.runtime import native


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    before = _core.isa()
    native._choice.cache_clear()
    yield
    native._choice.cache_clear()
    _core.set_isa(before)


def test_every_level_passes_its_self_test(isa: str) -> None:
    assert native.self_test() is None


def test_a_failing_level_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    best, *others = _core.cpu_info()["levels"]
    monkeypatch.setattr(native, "self_test", lambda: f"{best} is wrong" if _core.isa() == best else None)
    assert native.level() == others[0]
    assert f"{best} is wrong" in native.why()


def test_none_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "self_test", lambda: "wrong")
    assert native.available() == (False, "torch: " + "; ".join("wrong" for _ in _core.cpu_info()["levels"]))


@pytest.mark.parametrize("name", ["portable", "none", "mmx"])
def test_environment(name: str) -> None:
    program = "from bitwright.runtime import native; print(native.level(), native.why())"
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "BITWRIGHT_ISA": name}, capture_output=True, text=True
    )
    expected = {"portable": "portable portable kernels", "none": "None torch: BITWRIGHT_ISA=none", "mmx": ""}[name]
    assert result.stdout.startswith(expected)
    assert ("is not usable here" in result.stderr) == (name == "mmx")


def test_many_callers_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    rng = np.random.default_rng(0)
    part = packing.dense(rng, rng.integers(0, 4, (600, 640)), 2, 64, 64)
    matrix = _core.Matrix([part.term], 600, 640)
    x = torch.randn(4, 640)
    expected = matrix.matmul(x, 1)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: matrix.matmul(x, 2), range(200)))
    assert all((r == expected).all() for r in results)


def test_after_a_fork() -> None:
    program = """
import os, torch
from bitwright import _core
from bitwright.runtime import native
assert native.available()[0]
assert native.self_test() is None
child = os.fork()
if child == 0:
    os._exit(0 if native.self_test() is None else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
