"""Every family of models goes through: quantized, written, loaded, equal to its dense export in plain transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "gpt-neox", "opt", "mixtral"])
def family(request: pytest.FixtureRequest, families: Callable[[str], Path]) -> Path:
    """A random model of odd width."""
    return families(request.param)


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, experts_implementation="eager").eval()
assert "bitwright" not in sys.modules
with torch.inference_mode():
    torch.save(model(torch.arange(40)[None]).logits, sys.argv[2])
"""


@pytest.mark.parametrize("recipe", ["gptq", "pb-llm"])
def test_artifact_equals_its_dense_export_in_plain_transformers(
    family: Path, recipe: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    from bitwright.export.dense import export_dense
    from bitwright.runtime.load import load

    result = run(family, tmp_path / "out", recipe=recipe)
    if family.name == "mixtral":
        assert len(result.unseen) == 4
        assert all(name.endswith("[4]") for name in result.unseen)
    with torch.inference_mode():
        packed = load(tmp_path / "out", "float")(torch.arange(40)[None]).logits
        integer = load(tmp_path / "out")(torch.arange(40)[None]).logits
    export_dense(tmp_path / "out", tmp_path / "dense")
    subprocess.run([sys.executable, "-c", PLAIN, tmp_path / "dense", tmp_path / "logits.pt"], check=True)
    dense = torch.load(tmp_path / "logits.pt")
    assert (packed - dense).abs().max() < 1e-3 * dense.abs().max()
    assert (integer - dense).norm() < 0.1 * dense.norm()
    assert torch.isfinite(packed).all()


def test_a_target_size_spreads_bits(family: Path, text: Path, tmp_path: Path) -> None:
    from bitwright.engine.job import Job
    from bitwright.engine.run import prepare

    job = Job(model=str(family), out=tmp_path / "out", data=text, tokens=128, length=64)
    middle = prepare(job.model_copy(update={"bits": 4.0}))[2].file_bytes
    plan = prepare(job.model_copy(update={"target_bytes": middle}))[2]
    assert plan.file_bytes <= middle
    assert plan.decision is not None
    assert plan.decision.loss <= plan.decision.uniform_loss
