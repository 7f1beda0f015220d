"""Formats for every tensor: budgets met by the very files, plans that can be edited, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.artifact.read import open_artifact
from bitwright.engine import plan_file
from bitwright.engine.frontier import frontier
from bitwright.engine.job import Job
from bitwright.engine.run import prepare
from bitwright.errors import BadInput, Refused
from bitwright.formats.integer import Integer
from bitwright.recipes.gptq import MENU, RECIPE


@pytest.fixture
def planned(tiny_model: Path, text: Path, tmp_path: Path) -> Callable[..., Any]:
    def go(**fields: Any) -> Any:
        settings = {"data": text, "tokens": 256, "length": 64, "out": tmp_path / "out"} | fields
        return prepare(Job(model=str(tiny_model), **settings))[2]

    return go


@pytest.mark.parametrize("target", [50_000, 60_000, 75_000])
def test_the_file_fits_and_nothing_better_was_left(planned: Callable[..., Any], target: int) -> None:
    plan = planned(target_bytes=target)
    assert 0.97 * target < plan.file_bytes <= target
    assert plan.decision.loss <= plan.decision.uniform_loss
    assert plan.decision.gap < 1e-4
    assert len(set(plan.formats.values())) > 2


def test_bytes_of_mixed_files_are_as_planned(
    planned: Callable[..., Any], run: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    plan = planned(target_bytes=55_000)
    run(tiny_model, tmp_path / "made", target_bytes=55_000, tokens=256)
    assert open_artifact(tmp_path / "made").file_bytes() == plan.file_bytes


def test_bits_a_weight_are_met_with_the_embedding_left_alone(planned: Callable[..., Any]) -> None:
    plan = planned(target_bpw=3.0)
    assert 2.9 < plan.stored_bits_per_weight <= 3.0
    assert plan.recipe.embedding == RECIPE.embedding


def test_the_smallest_file_below_a_divergence(planned: Callable[..., Any]) -> None:
    loose, strict = (planned(max_kl=kl) for kl in (1e-4, 1e-6))
    assert loose.decision.loss <= 1e-4
    assert strict.decision.loss <= 1e-6
    assert loose.file_bytes < strict.file_bytes
    with pytest.raises(Refused, match=r"is predicted to lose \d\S* nats a token"):
        planned(max_kl=1e-15)


@pytest.mark.parametrize("score", ["hessian", "baq"])
def test_other_scores_meet_the_same_budget(planned: Callable[..., Any], score: str) -> None:
    plan = planned(target_bytes=60_000, score=score)
    assert plan.file_bytes <= 60_000
    assert plan.decision.score == score
    assert plan.decision.loss >= planned(target_bytes=60_000).decision.loss


def test_what_is_set_stays_beside_a_target(planned: Callable[..., Any]) -> None:
    """Linears that `keep` and `rules` name, and an embedding that is set, are no choice of the allocator's."""
    four = {"kind": "integer", "bits_per_code": 4, "group": 32}
    own = {
        "keep": '["*.0.self_attn.k_proj"]', "rules": json.dumps([["*.v_proj", four]]), "embedding.bits_per_code": "5",
    }  # fmt: skip
    plan = planned(target_bytes=80_000, settings=own)
    assert 0.95 * 80_000 < plan.file_bytes <= 80_000
    assert "model.layers.0.self_attn.k_proj" not in plan.formats
    for block in range(2):
        assert plan.formats[f"model.layers.{block}.self_attn.v_proj"] == Integer(4, 32)
    assert plan.formats["model.embed_tokens"].bits_per_code == 5
    assert len({fmt for name, fmt in plan.formats.items() if "mlp" in name}) > 1
    assert "model.layers.0.self_attn.k_proj" in planned(target_bytes=80_000).formats


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"target_bpw": 3.0, "settings": {"format.group": "64"}}, "--set format.group and a target both"),
        ({"min_speed": 1.0, "settings": {"keep": '["*.k_proj"]'}}, "leave out --set rules and --set keep"),
        ({"plan": Path("plan.json"), "settings": {"keep": '["*.k_proj"]'}}, "--plan and --set keep both"),
        ({"plan": Path("plan.json"), "settings": {"embedding": "null"}}, "--plan and --set embedding both"),
    ],
)
def test_settings_that_a_decision_would_undo(planned: Callable[..., Any], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        planned(**fields)


def test_why_no_setting_fits_is_said(planned: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="chooses among integers"):
        planned(recipe="rtn", target_bytes=60_000, settings={"format": '{"kind": "binary"}'})


def test_a_plan_file_comes_back_and_can_be_edited(planned: Callable[..., Any], tmp_path: Path) -> None:
    plan, path = planned(target_bytes=60_000), tmp_path / "plan.json"
    own = {k: v for k, v in plan.formats.items() if k not in plan.contents.parts}
    plan_file.write(path, plan.recipe, own)
    assert planned(plan=path).formats == plan.formats
    told = json.loads(path.read_text())
    told["weights"] = {"*.v_proj": told["weights"]["model.layers.0.self_attn.v_proj"], "*": next(iter(told["formats"]))}
    told["embedding"] = None
    path.write_text(json.dumps(told))
    edited = planned(plan=path)
    assert edited.recipe.embedding is None
    assert edited.formats["model.layers.1.self_attn.v_proj"] == plan.formats["model.layers.0.self_attn.v_proj"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": {"*.x_proj": "f"}}, "no weight of this model"),
        ({"weights": {"*.v_proj": "f"}}, "has no format"),
        ({"weights": {"*": "g"}}, "not listed under formats"),
        ({"formats": {"f": {"kind": "integer", "bits": 3}}}, "bits"),
        ({"extra": 1}, "exactly the keys"),
    ],
)
def test_a_plan_file_that_does_not_fit_is_refused(
    planned: Callable[..., Any], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = tmp_path / "plan.json"
    good = {"formats": {"f": {"kind": "integer"}}, "embedding": None, "weights": {"*": "f"}}
    path.write_text(json.dumps(good | change))
    with pytest.raises(BadInput, match=told):
        planned(plan=path)


def test_what_cannot_be_reached_says_by_how_much(planned: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match=r"smallest file is 0\.023.* MB more \(most of it: model\.embed_tokens"):
        planned(target_bytes=20_000)
    with pytest.raises(Refused, match=r"1\.1 bits a weight cannot be reached .* stores 1\.\d+"):
        planned(target_bpw=1.1)
    with pytest.raises(BadInput, match="--score is for the allocator"):
        planned(bits=4, score="fisher")
    with pytest.raises(BadInput, match="does not spread bits"):
        planned(recipe="rtn", target_bpw=3.0)


def test_a_frontier_ends_where_formats_end_and_never_rises(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    job = Job(model=str(tiny_model), out=tmp_path / "out", data=text, tokens=256, length=64)
    plans = frontier(job, 4)
    sizes, losses = [p.file_bytes for p in plans], [p.decision.loss for p in plans if p.decision]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(losses, reverse=True)
    assert sizes[0] == prepare(job.model_copy(update={"target_bytes": sizes[0]}))[2].file_bytes
    with pytest.raises(Refused, match="the smallest file is"):
        prepare(job.model_copy(update={"target_bytes": sizes[0] - 1}))
    with pytest.raises(BadInput, match="two points"):
        frontier(job, 1)
    with pytest.raises(BadInput, match="does not spread"):
        frontier(job.model_copy(update={"recipe": "rtn"}), 3)


def test_shares_add_up_to_the_whole(planned: Callable[..., Any]) -> None:
    decision = planned(target_bytes=60_000).decision
    assert sum(share.loss for share in decision.shares) == pytest.approx(decision.loss)
    assert {share.part for share in decision.shares} == {1, 2, None}  # two blocks are in the first and second third


def test_the_menu_has_no_format_twice() -> None:
    assert len(set(MENU.formats)) == len(MENU.formats)


def test_the_prediction_is_held_against_the_written_model(
    run: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    result = run(tiny_model, tmp_path / "made", target_bytes=50_000, tokens=256)
    assert result.decision.loss > 0
    assert 0 < result.divergence < 1
    assert open_artifact(tmp_path / "made").file_bytes() <= 50_000


def test_the_better_of_two_is_kept(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    from bitwright.engine.rival import better

    job = Job(model=str(tiny_model), out=tmp_path / "out", data=text, tokens=256, length=64, target_bytes=50_000)
    kept, other = better(job)
    assert kept.divergence <= other.divergence
    assert {kept.decision.score, other.decision.score} == {"fisher", "uniform"}
    manifest = open_artifact(job.out).manifest
    assert manifest is not None
    assert manifest.fingerprint == kept.manifest.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = job.model_copy(update={"out": tmp_path / "again"})
    stages: list[str] = []

    def stop(what: str, done: int, of: int | None) -> None:
        stages.append(what)
        if what == "verifying" and stages.count(what) == 2:
            raise TimeoutError("stopped")

    with pytest.raises(TimeoutError, match="stopped"):
        better(again, stop)
    assert not again.out.exists()
    stages.clear()
    assert better(again, lambda what, done, of: stages.append(what))[0].manifest == manifest
    assert stages.count("verifying") == 1  # the first of the two is not made again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "out"]
    with pytest.raises(BadInput, match="equal size"):
        better(job.model_copy(update={"target_bytes": None, "bits": 4}))
