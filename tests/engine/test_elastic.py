"""A file whose beginnings are models: made, ordered and measured by the engine, resized while it runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.allocate.ordering import order
from bitwright.artifact.layout import SINGLE, Origin, Quantization, RecipeRow, Weight
from bitwright.artifact.prefix import Prefix
from bitwright.artifact.read import open_artifact
from bitwright.artifact.steps import levels
from bitwright.artifact.write import Contents, write_artifact
from bitwright.engine.verify import fixed_logits
from bitwright.errors import Refused
from bitwright.formats.stack import Stack
from bitwright.protocols import PlaneSpec
from bitwright.runtime import native
from bitwright.runtime.elastic import ElasticModel
from bitwright.runtime.generate import open_generator
from bitwright.runtime.load import load
from bitwright.spec import to_spec
from bitwright.tune.run import tune
from bitwright.tune.settings import Tuning

QUICK = {"solver.each": '{"kind": "rtn", "weighted": true}', "format.blocks": "3"}


@pytest.fixture(scope="module")
def elastic(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in three blocks a weight; read only."""
    from bitwright.calibrate.tokens import builtin_text
    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize

    folder = tmp_path_factory.mktemp("elastic")
    (folder / "text.txt").write_text(builtin_text()[1][:40_000])
    job = Job(
        model=str(tiny_model), out=folder / "out", recipe="bit-stack", settings=QUICK, data=folder / "text.txt",
        tokens=512, length=64, threads=1,
    )  # fmt: skip
    quantize(job)
    return job.out


def test_files_in_blocks_do_not_learn(elastic: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="file in blocks"):
        tune(Tuning(artifact=elastic, out=tmp_path / "tuned", steps=1))
    assert not list(tmp_path.iterdir())


def test_the_curve_covers_the_file(elastic: Path) -> None:
    manifest = open_artifact(elastic).manifest
    assert manifest is not None
    assert manifest.elastic is not None
    sizes = [point.bytes for point in manifest.elastic.curve]
    prefix = Prefix(elastic)
    assert len(sizes) == 12
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (prefix.smallest, prefix.bytes)
    assert len(prefix.steps) == 2 * 14
    assert 0 <= manifest.elastic.curve[-1].kl < manifest.elastic.curve[0].kl / 2


@pytest.mark.parametrize("stage", ["rating blocks", "probing groups", "measuring the curve"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    elastic: Path, tiny_model: Path, tmp_path: Path, run: Callable[..., Any], stage: str
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == stage and done == 1:
            raise KeyboardInterrupt

    fields = {"recipe": "bit-stack", "settings": QUICK, "threads": 2}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "out", interrupt, **fields)
    assert not (tmp_path / "out").exists()
    run(tiny_model, tmp_path / "out", **fields)
    assert (tmp_path / "out" / SINGLE).read_bytes() == (elastic / SINGLE).read_bytes()
    curves = [open_artifact(folder).manifest.elastic for folder in (tmp_path / "out", elastic)]  # type: ignore[union-attr]
    assert curves[0] == curves[1]


def test_resizing_leads_to_the_model_that_was_loaded_so(elastic: Path) -> None:
    stops = [own.stop for own in Prefix(elastic).steps]
    model = ElasticModel(elastic)
    whole = fixed_logits(model.model, model.model.config.vocab_size)
    assert torch.equal(whole, fixed_logits(load(elastic), model.model.config.vocab_size))
    seen = []
    for budget in (stops[4], stops[-3], model.prefix.smallest, stops[13]):
        model.resize(budget)
        assert model.bytes == budget
        fresh = ElasticModel(elastic, budget).model
        seen.append(fixed_logits(model.model, fresh.config.vocab_size))
        assert torch.equal(seen[-1], fixed_logits(fresh, fresh.config.vocab_size))
    assert not torch.equal(seen[0], seen[1])
    model.resize(None)
    assert torch.equal(fixed_logits(model.model, model.model.config.vocab_size), whole)


def test_a_part_can_be_saved_as_a_model_of_its_own(elastic: Path, tmp_path: Path) -> None:
    model = ElasticModel(elastic)
    model.resize(Prefix(elastic).steps[5].stop)
    model.model.save_pretrained(tmp_path / "part")
    assert (tmp_path / "part" / SINGLE).stat().st_size < model.bytes + 2000
    again = load(tmp_path / "part")
    vocabulary = again.config.vocab_size
    assert torch.equal(fixed_logits(again, vocabulary), fixed_logits(model.model, vocabulary))


@pytest.mark.skipif(not native.available()[0], reason="no compiled kernels here")
def test_the_engine_reads_the_weights_where_they_are(elastic: Path) -> None:
    """And gives the logits of an engine that copied them, before and after the size has changed."""
    model, ids = ElasticModel(elastic), torch.arange(20)[None] * 5
    for budget in (None, Prefix(elastic).steps[7].stop, None):
        model.resize(budget)
        copied = open_generator(model.prefix.part, "int8", "native").module
        for _ in range(3):  # the copy is made after the first block of tokens
            assert torch.equal(model.generator().module(ids).logits, copied(ids).logits)


def wide(folder: Path) -> Path:
    """A LLaMA of two blocks and 50 MB of signs; nobody has quantized it, its codes and scales are noise."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = {"model_type": "llama", "vocab_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64, **sizes}
    shapes = {f"self_attn.{n}_proj": (1024, 1024) for n in "qkvo"}
    shapes |= {"mlp.gate_proj": (4096, 1024), "mlp.up_proj": (4096, 1024), "mlp.down_proj": (1024, 4096)}
    quantization = Quantization(
        formats=(to_spec(Stack(8)),),
        weights=tuple(
            Weight(name=f"model.layers.{i}.{n}", format=0, shape=shape) for i in range(2) for n, shape in shapes.items()
        ),
    )
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(2) for n in ("input", "post_attention")]
    kept = {"model.embed_tokens.weight": PlaneSpec(torch.float16, (64, 1024))}
    kept |= {"lm_head.weight": PlaneSpec(torch.float16, (64, 1024))}
    kept |= {name: PlaneSpec(torch.float16, (1024,)) for name in [*norms, "model.norm.weight"]}
    specs = {
        f"{w.name}.{role}": spec for w in quantization.weights for role, spec in Stack(8).planes(w.matrix).items()
    } | kept

    def tensor(name: str) -> torch.Tensor:
        spec = specs[name]
        if spec.dtype == torch.uint8:
            return torch.randint(0, 256, spec.shape, dtype=torch.uint8)
        return torch.rand(spec.shape).half() / 100

    origin = Origin(bitwright="0.1.0", recipe=RecipeRow(name="noise"), fingerprint="0" * 64)
    contents = Contents(config, quantization, kept, origin, steps=levels(quantization))
    folder.mkdir()
    write_artifact(folder, contents, tensor, lambda place: None)
    return folder


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell memory here")
def test_memory_follows_the_budget(tmp_path: Path) -> None:
    path = wide(tmp_path / "wide")
    whole = (path / SINGLE).stat().st_size
    assert whole > 30e6
    model = ElasticModel(path, Prefix(path).smallest)
    ids = torch.arange(8)[None]
    page = 3e6  # bytes: the system gives huge pages of 2 MB or takes them as it likes
    least = model.bytes
    for budget in (whole, least):
        model.resize(budget)
        model.generator().module(ids)  # scratch memory and pools are there from now on
    at: dict[int, int] = {}
    for budget in (least, whole, whole // 2, whole, least):
        model.resize(budget)
        model.generator().module(ids)
        at.setdefault(model.bytes, resident())
        assert abs(resident() - at[model.bytes]) < page  # comes back to where it was
    (_, low), (middle, half), (most, high) = sorted(at.items())
    assert half - low == pytest.approx(middle - least, abs=page)
    assert high - half == pytest.approx(most - middle, abs=page)


def test_steps_go_by_gain_for_their_cost() -> None:
    losses = [[8, 4, 2, 1], [6, 1, 0.5]]
    assert order(losses, [[1, 2, 3, 4], [1, 2, 3]]) == [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1)]
    assert order(losses, [[1, 2, 3, 4], [100, 200, 300]])[:3] == [(0, 0), (0, 1), (0, 2)]
    # Steps of one item have costs of their own: a gain of 5 for 1 comes before one of 6 for 2.
    assert order([[8, 2, 1], [8, 3]], [[2, 4, 5], [1, 2]]) == [(1, 0), (0, 0), (0, 1)]
    # A step of no use does not hide the good one behind it, and one that harms comes last.
    assert order([[5, 5, 1], [3, 2.5]], [[1, 2, 3], [1, 2]]) == [(0, 0), (0, 1), (1, 0)]
    assert order([[1, 2], [1, 1]], [[1, 2], [1, 2]])[-1] == (0, 0)


def test_stacked_experts_cannot_be_ordered(tmp_path: Path, run: Callable[..., Any]) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(Refused, match="stacked experts"):
        run(tmp_path / "model", tmp_path / "out", recipe="bit-stack")
