"""Tokens that do without experts: what the specification of MC-MoE's online pruning asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bitwright.artifact.read import open_artifact
from bitwright.calibrate.tokens import builtin_text
from bitwright.cli.subject import open_subject
from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.errors import Refused
from bitwright.learning import Learning
from bitwright.runtime.load import load_float
from bitwright.runtime.skipping import Skipping, importance, kept
from bitwright.tune.run import tune
from bitwright.tune.settings import Tuning

IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
PATHS = ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")


@torch.inference_mode()
def logits(folder: Path, threshold: float, protect: float, top: int = 2) -> tuple[torch.Tensor, float]:
    model = load_float(str(folder))
    if protect > 0:
        model.set_attn_implementation("eager")
    for path in PATHS:
        model.get_submodule(path.removesuffix("experts") + "gate").top_k = top
    if top == 1 or threshold < 0:
        return model(IDS).logits, 0.0
    skipping = Skipping(model, dict.fromkeys(PATHS, threshold), protect)
    return model(IDS).logits, skipping.share


def test_no_threshold_skips_nothing_and_a_large_one_leaves_the_first_choice(mixtral: Path) -> None:
    whole, _ = logits(mixtral, -1, 0.0)
    same, none = logits(mixtral, 0.0, 0.0)
    assert torch.equal(same, whole)
    assert none == 0
    single, half = logits(mixtral, 1.01, 0.0)
    torch.testing.assert_close(single, logits(mixtral, 0.0, 0.0, top=1)[0])
    assert half == 0.5
    middle, some = logits(mixtral, 0.8, 0.0)
    assert 0 < some < 0.5
    assert not torch.equal(middle, whole)


def test_protected_tokens_keep_all(mixtral: Path) -> None:
    whole, _ = logits(mixtral, -1, 1.0)
    every, none = logits(mixtral, 1.01, 1.0)
    assert torch.equal(every, whole)
    assert none == 0
    assert logits(mixtral, 1.01, 0.1)[1] == pytest.approx(0.5 * 0.9)  # 4 of 40 tokens of each sequence


def test_importance_is_what_later_tokens_pay(mixtral: Path) -> None:
    """Sums over queries, not keys: the last token is judged by its own query alone."""
    attention = torch.zeros(1, 2, 3, 5)  # two keys of an earlier text, then three tokens
    attention[0, :, :, 2:] = torch.tensor([[[0.5, 0, 0], [0.2, 0.4, 0], [0.2, 0.6, 0.1]]] * 2)
    states = torch.tensor([[[1.0, -1.0], [2.0, 0.0], [0.0, -4.0]]])
    expected = torch.tensor([[2 * 0.9 / 3, 2 * 1.0 / 2, 4 * 0.1]])
    torch.testing.assert_close(importance(states, attention), expected)
    weights = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]])
    assert kept(weights, 0.4, torch.tensor([False, False])).tolist() == [[True, True, False], [True, True, True]]
    assert kept(weights, 0.4, torch.tensor([True, False])).all()


def test_thresholds_are_measured_and_stored(mixtral: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(builtin_text()[1][:20_000])
    out = tmp_path / "out"
    quantize(Job(model=str(mixtral), out=out, data=tmp_path / "text.txt", tokens=256, length=64, bits=8.5))
    manifest = open_artifact(out).manifest
    assert manifest is not None
    assert tuple(manifest.skipping) == PATHS
    assert all(0.5 < ratio < 1 for ratio in manifest.skipping.values())  # random routers hardly prefer
    plain, skipping = (open_subject(str(out), skip=skip) for skip in (False, True))
    assert plain.fingerprint != skipping.fingerprint
    with torch.inference_mode():
        found = [subject.speaker().module(IDS).logits for subject in (plain, skipping)]
    assert not torch.equal(*found)
    tuned = tune(
        Tuning(
            artifact=out, out=tmp_path / "tuned", data=(tmp_path / "text.txt",), steps=1,
            learning=Learning(batch=1, length=32),
        )
    ).manifest  # fmt: skip
    assert tuned.skipping == manifest.skipping
    told = json.loads((out / "bitwright.json").read_text())
    (out / "bitwright.json").write_text(json.dumps(told | {"skipping": {}}))
    with pytest.raises(Refused, match="no expert can be skipped"):
        open_subject(str(out), skip=True).speaker()
