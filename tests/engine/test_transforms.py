"""Transforms in a run: what they change of the kept vectors is stored with the block, also across interruptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.artifact.read import open_artifact
from bitwright.engine.settings import choose
from bitwright.errors import BadField, Refused
from bitwright.models.source import open_source
from bitwright.runtime.load import load, load_float
from bitwright.transforms.awq import Awq
from bitwright.transforms.hadamard import Hadamard


@pytest.fixture(autouse=True)
def _unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fresh process that loads what was written: other tests have it."""
    monkeypatch.setattr("bitwright.engine.run.verified", lambda folder, contents, tensor, manifest: manifest)


BOTH = {"transforms": '[{"kind": "hadamard"}, {"kind": "awq", "steps": 4}]', "format.bits_per_code": "8"}


@pytest.mark.parametrize("propagate", ["true", "false"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Callable[[Path], str], propagate: str
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == 1:
            raise KeyboardInterrupt

    settings = BOTH | {"propagate": propagate}
    run(tiny_model, tmp_path / "whole", settings=settings, threads=1)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "parts", interrupt, settings=settings)
    run(tiny_model, tmp_path / "parts", settings=settings)
    assert sha256(tmp_path / "parts") == sha256(tmp_path / "whole")


def test_learned_blocks_go_on_to_the_same_bytes_for_any_threads(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Callable[[Path], str]
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == 1:
            raise KeyboardInterrupt

    fields = {"recipe": "autoround", "settings": {"refiner.steps": "4", "transforms": '[{"kind": "hadamard"}]'}}
    run(tiny_model, tmp_path / "whole", threads=1, **fields)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "parts", interrupt, threads=3, **fields)
    run(tiny_model, tmp_path / "parts", threads=2, **fields)
    assert sha256(tmp_path / "parts") == sha256(tmp_path / "whole")


def test_the_artifact_holds_the_folded_vectors_and_the_same_function(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    result = run(tiny_model, tmp_path / "out", settings=BOTH)
    assert {kind for kind, _ in result.left} == {"hadamard"}
    others = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for _, name in result.left} == others
    artifact, source = open_artifact(tmp_path / "out"), open_source(str(tiny_model))
    norms = [name for name in artifact.kept if name.startswith("model.layers.")]
    assert norms
    assert not any(torch.equal(artifact.tensor(name), source.tensor(name)) for name in norms)
    assert torch.equal(artifact.tensor("model.norm.weight"), source.tensor("model.norm.weight"))
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        expected, found = load_float(str(tiny_model))(ids).logits, load(tmp_path / "out", "float")(ids).logits
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_kept_linears_are_stored_as_transformed(tiny_model: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    run(tiny_model, tmp_path / "out", settings=BOTH | {"keep": '["*.v_proj"]'})
    name = "model.layers.0.self_attn.v_proj.weight"
    stored, original = open_artifact(tmp_path / "out").tensor(name), open_source(str(tiny_model)).tensor(name)
    assert not torch.equal(stored, original)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        expected, found = load_float(str(tiny_model))(ids).logits, load(tmp_path / "out", "float")(ids).logits
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_rounding_with_transforms_needs_text_and_follows_it(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    result = run(tiny_model, tmp_path / "out", recipe="rtn", settings={"transforms": '[{"kind": "awq"}]'})
    assert result.manifest.calibration is not None
    assert result.left == ()


def test_settings_name_transforms() -> None:
    recipe, _ = choose("gptq", {"transforms": BOTH["transforms"]}, None, [])
    assert recipe.transforms == (Hadamard(), Awq(steps=4))
    with pytest.raises(BadField):
        choose("gptq", {"transforms": '[{"kind": "gptq"}]'}, None, [])
    with pytest.raises(BadField):
        choose("gptq", {"transforms": '[{"kind": "hadamard", "longest": 48}]'}, None, [])


def test_elastic_files_are_refused(tiny_model: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="transforms"):
        run(tiny_model, tmp_path / "out", recipe="bit-stack", settings={"transforms": '[{"kind": "awq"}]'})
