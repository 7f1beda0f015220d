"""The loop over blocks: same bytes however it was run, refusals, and every family of models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.artifact.folder import lock
from bitwright.artifact.read import open_artifact
from bitwright.calibrate.tokens import builtin_text
from bitwright.engine.job import Job
from bitwright.engine.run import prepare
from bitwright.engine.settings import choose
from bitwright.errors import BadInput, BitwrightError, Refused
from bitwright.models.source import open_source
from bitwright.runtime.load import load, load_float

Digest = Callable[[Path], str]


def test_bytes_do_not_depend_on_threads_or_repetition(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Digest
) -> None:
    hashes = set()
    for threads in (1, 2, 3, 2):
        out = tmp_path / f"t{len(list(tmp_path.iterdir()))}"
        run(tiny_model, out, recipe="pb-llm", threads=threads)
        hashes.add(sha256(out))
    assert len(hashes) == 1


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Digest, stop: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tiny_model, whole)

    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, parts, interrupt)
    assert not parts.exists()
    assert (tmp_path / "parts.journal").is_dir()
    run(tiny_model, parts)
    assert sha256(parts) == sha256(whole)
    assert not (tmp_path / "parts.journal").exists()


def test_the_matrix_of_the_head_is_solved_for_what_it_multiplies(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Against rounding: errors of the tied matrix are larger in themselves, smaller in the logits."""

    def matrix(name: str, solver: str) -> torch.Tensor:
        few = {"embedding.bits_per_code": "3", "embedding_solver": solver, "format.bits_per_code": "8"}
        run(tiny_model, tmp_path / name, settings=few, tokens=4096)
        artifact = open_artifact(tmp_path / name)
        return artifact.qtensor(artifact.quantization.tied[0][1]).dequantize()

    solved, rounded = matrix("solved", '{"kind":"gptq","damping":0.01}'), matrix("rounded", "none")
    model = load_float(str(tiny_model))
    ids = open_source(str(tiny_model)).tokenizer()(builtin_text()[1][50_000:60_000], return_tensors="pt")["input_ids"]
    w = model.get_input_embeddings().weight
    with torch.no_grad():
        hidden = model.base_model(ids[:, :400]).last_hidden_state[0]
    in_logits = [float(((q - w) @ hidden.T).norm()) for q in (solved, rounded)]
    in_itself = [float((q - w).norm()) for q in (solved, rounded)]
    assert in_logits[0] < 0.9 * in_logits[1]
    assert in_itself[0] > in_itself[1]


@pytest.mark.parametrize("transforms", ["[]", '[{"kind": "hadamard"}]'])
def test_weights_make_up_for_what_their_inputs_have_lost(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], transforms: str
) -> None:
    """Hidden states of other text come nearer to those of the float model, whose linears may have other inputs."""
    ids = open_source(str(tiny_model)).tokenizer()(builtin_text()[1][50_000:60_000], return_tensors="pt")["input_ids"]

    def hidden(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.base_model(ids[:, :400]).last_hidden_state[0]

    wanted, lost = hidden(load_float(str(tiny_model))), {}
    for drift in ("0", "1"):
        settings = {"format.bits_per_code": "2", "drift": drift, "transforms": transforms}
        run(tiny_model, tmp_path / drift, settings=settings, tokens=8192)
        lost[drift] = float((hidden(load(tmp_path / drift)) - wanted).square().mean())
    assert lost["1"] < 0.6 * lost["0"]


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_run_with_drift_goes_on_to_the_same_bytes(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Digest, stop: int
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == stop:
            raise KeyboardInterrupt

    run(tiny_model, tmp_path / "whole", settings={"drift": "0.5"}, threads=1)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "parts", interrupt, settings={"drift": "0.5"})
    run(tiny_model, tmp_path / "parts", settings={"drift": "0.5"})
    assert sha256(tmp_path / "parts") == sha256(tmp_path / "whole")


@pytest.mark.parametrize(
    "settings",
    [{"drift": "1.5"}, {"drift": "0.5", "propagate": "false"}, {"drift": "0.5", "solver": '{"kind": "rtn"}'}],
)
def test_drift_that_cannot_be_is_refused(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], settings: dict[str, str]
) -> None:
    with pytest.raises(BitwrightError, match="drift"):
        run(tiny_model, tmp_path / "x", settings=settings)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("settings", [{"propagate": "false"}, {"solver": '{"kind": "rtn"}'}])
def test_drift_that_a_recipe_has_of_its_own_gives_way(settings: dict[str, str]) -> None:
    assert choose("gptq", {}, None, [])[0].drift == 0.5
    assert choose("gptq", settings, None, [])[0].drift == 0


def test_without_propagation_statistics_are_those_of_the_float_model(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """The first wave of the model sees float inputs either way; all later ones only without propagation."""

    def weights(name: str, propagate: str) -> dict[str, torch.Tensor]:
        run(tiny_model, tmp_path / name, settings={"propagate": propagate, "format.bits_per_code": "2"})
        artifact = open_artifact(tmp_path / name)
        return {w.name: artifact.qtensor(w.name).dequantize() for w in artifact.weights()}

    on, off = weights("on", "true"), weights("off", "false")
    same = {name: torch.equal(on[name], off[name]) for name in on}
    first = {name for name in on if name.startswith("model.layers.0.self_attn.") and not name.endswith("o_proj")}
    assert len(first) == 3
    assert all(same[name] for name in first)
    assert not same["model.layers.0.mlp.down_proj"]
    assert not any(equal for name, equal in same.items() if name.startswith("model.layers.1."))


def test_other_settings_are_refused_and_named(tiny_model: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "out", interrupt)
    with pytest.raises(Refused, match="seed was 0, now 7"):
        run(tiny_model, tmp_path / "out", seed=7)


def test_a_damaged_part_is_made_again(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Digest
) -> None:
    run(tiny_model, tmp_path / "whole")

    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "out", interrupt)
    part = tmp_path / "out.journal" / "block-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    run(tiny_model, tmp_path / "out")
    assert sha256(tmp_path / "out") == sha256(tmp_path / "whole")


def test_a_second_process_and_an_existing_folder_are_refused(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    with lock(tmp_path / "out"), pytest.raises(Refused, match="another process is writing"):
        run(tiny_model, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(Refused, match="already exists"):
        run(tiny_model, tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_predicted_bytes_are_file_bytes(tiny_model: Path, tmp_path: Path, run: Callable[..., Any], text: Path) -> None:
    for recipe in ("rtn", "gptq", "pb-llm"):
        out = tmp_path / recipe
        plan = prepare(Job(model=str(tiny_model), out=out, recipe=recipe, data=text))[2]
        run(tiny_model, out, recipe=recipe)
        artifact = open_artifact(out)
        sizes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        assert plan.file_bytes == sizes == artifact.file_bytes()
        assert artifact.manifest is not None
        totals = artifact.manifest.totals
        block = sum(row.bytes for row in artifact.manifest.plan if row.part == "block")
        assert totals.stored_bits_per_weight == pytest.approx(8 * block / totals.block_weights)
        assert totals.file_bytes == totals.header_bytes + totals.kept_bytes + sum(
            r.bytes for r in artifact.manifest.plan
        )
        assert artifact.manifest.verification is not None


@pytest.mark.parametrize("bits", [3.1, 4.2])
def test_bits_are_met_from_below(tiny_model: Path, tmp_path: Path, text: Path, bits: float) -> None:
    job = Job(model=str(tiny_model), out=tmp_path / "out", recipe="pb-llm", bits=bits, data=text)
    stored = prepare(job)[2].stored_bits_per_weight
    assert bits - 0.02 < stored <= bits
    with pytest.raises(Refused, match=r"too few .* at least"):
        prepare(job.model_copy(update={"bits": 1.2}))


def test_target_size_is_met_from_below(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    job = Job(model=str(tiny_model), out=tmp_path / "out", recipe="pb-llm", data=text)
    small, large = (prepare(job.model_copy(update={"bits": b}))[2].file_bytes for b in (3.1, 5.0))
    target = (small + large) // 2
    found = prepare(job.model_copy(update={"target_bytes": target}))[2].file_bytes
    assert 0.96 * target < found <= target
    with pytest.raises(Refused, match=r"cannot be reached .* smallest file"):
        prepare(job.model_copy(update={"target_bytes": 1000}))


def test_a_nan_weight_is_named_and_nothing_is_written(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* NaN"):
        run(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kept_layers_and_rules(tiny_model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from bitwright.formats.integer import Integer
    from bitwright.recipes.gptq import RECIPE

    recipe = replace(RECIPE, keep=("*.o_proj",), rules=(("*.v_proj", Integer(6, 64)),))
    assert recipe.format_of("model.layers.0.self_attn.o_proj") is None
    assert recipe.format_of("model.layers.0.self_attn.v_proj") == Integer(6, 64)
    assert recipe.format_of("model.layers.0.self_attn.q_proj") == RECIPE.format


def test_memory_limit_is_refused_before_work(tiny_model: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="more than --max-memory"):
        run(tiny_model, tmp_path / "out", max_memory=1000)
    assert not (tmp_path / "out.journal").exists()


def test_eight_bits_lose_almost_nothing(tiny_model: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    from bitwright.runtime.load import load, load_float

    run(tiny_model, tmp_path / "out", settings={"format.bits_per_code": "8"})
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        expected = load_float(str(tiny_model))(ids).logits
        found = load(tmp_path / "out", "float")(ids).logits
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_parts_of_another_run_do_not_count(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Digest
) -> None:
    """A journal without its run.json, as a kill while it was removed would leave it."""

    def interrupt(what: str, done: int, of: int) -> None:
        if what == "blocks" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "out", interrupt, settings={"solver.damping": "0.5"})
    (tmp_path / "out.journal" / "run.json").unlink()
    run(tiny_model, tmp_path / "out")
    run(tiny_model, tmp_path / "clean")
    assert sha256(tmp_path / "out") == sha256(tmp_path / "clean")


def test_threads_under_a_memory_limit_change_nothing(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any], sha256: Digest
) -> None:
    run(tiny_model, tmp_path / "one", threads=1)
    run(tiny_model, tmp_path / "limited", threads=4, max_memory=3_000_000)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "limited")


def test_sequences_longer_than_the_model_reads_are_refused(
    tiny_model: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    with pytest.raises(Refused, match="at most 256 tokens"):
        run(tiny_model, tmp_path / "out", length=512)


def test_an_embedding_needs_rows_apart(tiny_model: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="embedding cannot be stored as mixed"):
        run(tiny_model, tmp_path / "out", settings={"embedding": '{"kind": "mixed"}'})


def test_a_job_takes_one_text_or_several() -> None:
    texts = [Job(model="m", out=Path("o"), data=data).data for data in (None, (), Path("a"), "a", ["a", "b"])]
    assert texts == [(), (), (Path("a"),), (Path("a"),), (Path("a"), Path("b"))]
