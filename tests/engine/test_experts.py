"""Stacks whose experts have formats of their own: chosen, stored, loaded, exported, and refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bitwright.artifact.layout import expert_of
from bitwright.artifact.read import open_artifact
from bitwright.engine import plan_file
from bitwright.engine.job import Job
from bitwright.engine.run import prepare, quantize
from bitwright.errors import BadArtifact, Refused
from bitwright.export.dense import export_dense
from bitwright.models.skeleton import skeleton
from bitwright.runtime.install import install
from bitwright.runtime.load import load, load_float, read_config
from bitwright.sensitivity.observe import observe
from bitwright.tune.run import Tuning, tune

SIZE = 60_000


@pytest.fixture(scope="module")
def moe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen-MoE of one block with a shared expert; the first of its four experts matters most."""
    from transformers import AutoTokenizer, Qwen2MoeConfig, Qwen2MoeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[0] *= 20
    folder = tmp_path_factory.mktemp("moe") / "qwen"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def job(moe: Path, text: Path, tmp_path: Path) -> Job:
    return Job(model=str(moe), out=tmp_path / "out", data=text, tokens=256, length=64, target_bytes=SIZE)


def test_experts_that_matter_get_more_bits_and_files_are_as_planned(job: Job, tmp_path: Path) -> None:
    source, structure, plan = prepare(job)
    assert plan.decision is not None
    assert plan.decision.loss <= plan.decision.uniform_loss  # type: ignore[operator]
    down = [f for name, f in plan.formats.items() if name.startswith("model.layers.0.mlp.experts.down_proj.expert")]
    assert len(down) == 4
    assert down[0].bits((48, 32)).total == max(fmt.bits((48, 32)).total for fmt in down)
    assert len(set(down)) > 1
    quantize(job, prepared=(source, structure, plan))
    artifact = open_artifact(job.out)
    assert artifact.file_bytes() == plan.file_bytes <= SIZE
    export_dense(job.out, tmp_path / "dense")
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        packed, dense = load(job.out, "float")(ids).logits, load_float(str(tmp_path / "dense"))(ids).logits
    torch.testing.assert_close(packed, dense, rtol=1e-3, atol=1e-4)


def test_a_plan_names_experts_or_their_stack(job: Job, tmp_path: Path) -> None:
    plan, path = prepare(job)[2], tmp_path / "plan.json"
    plan_file.write(path, plan.recipe, {k: v for k, v in plan.formats.items() if k not in plan.contents.parts})
    again = job.model_copy(update={"target_bytes": None, "plan": path})
    assert prepare(again)[2].formats == plan.formats
    told = json.loads(path.read_text())
    first, second, *_ = told["formats"]
    told["weights"] = {"*.gate_up_proj.expert2": first, "*.mlp.experts.gate_up_proj": second, "*": first}
    path.write_text(json.dumps(told))
    edited = prepare(again)[2]
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    assert [edited.formats[f"{stack}.expert{e}"] == edited.formats[f"{stack}.expert2"] for e in range(4)] == [
        False, False, True, False,
    ]  # fmt: skip
    assert "model.layers.0.mlp.experts.down_proj" in edited.formats  # one format: stored in one piece


def test_statistics_of_experts_share_out_the_tokens(moe: Path) -> None:
    stack = "model.layers.0.mlp.experts.down_proj"
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    seen, _ = observe(load_float(str(moe)), [], [], ids, stacks=[stack])
    assert [expert_of(name) for name in seen] == [(stack, e) for e in range(4)]
    assert sum(own.share for own in seen.values()) == pytest.approx(2)  # experts a token
    assert sum(own.gram.tokens for own in seen.values()) == 160
    for own in seen.values():
        assert bool((own.gradient > 0).any()) == (own.share > 0)
        assert own.guided.trace() >= 0


def test_a_stack_that_lacks_an_expert_is_refused(job: Job, text: Path) -> None:
    quantize(job)
    artifact = open_artifact(job.out)
    own = [w for w in artifact.quantization.weights if expert_of(w.name)]
    less = artifact.quantization.model_copy(
        update={"weights": tuple(w for w in artifact.quantization.weights if w != own[-1])}
    )
    with pytest.raises(BadArtifact, match="lacks some of its 4 experts"):
        install(skeleton(read_config(artifact.config)), less, artifact.formats)
    with pytest.raises(Refused, match="tuning needs one for all"):
        tune(Tuning(artifact=job.out, out=job.out.with_name("tuned"), against=job.model, data=(text,), steps=1))


def test_experts_cannot_have_scales_that_tokens_mix(job: Job) -> None:
    with pytest.raises(Refused, match="whose scales tokens cannot mix"):
        prepare(job.model_copy(update={"recipe": "binary-mos", "target_bytes": None}))
