"""transformers and bitwright folders: with our import they run packed, without it they fail loudly."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LOAD = """
import sys
{imports}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
import torch
print(type(model.model.layers[0].mlp.up_proj).__name__)
with torch.inference_mode():
    torch.save(model(torch.arange(20)[None]).logits, sys.argv[2])
"""


def load_in_a_new_process(imports: str, folder: Path, logits: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", LOAD.format(imports=imports), str(folder), str(logits)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_plain_transformers_refuses_instead_of_making_noise(packed: Path, tmp_path: Path) -> None:
    done = load_in_a_new_process("from transformers import AutoModelForCausalLM", packed, tmp_path / "logits")
    assert done.returncode != 0
    assert "mismatch" in done.stderr.lower()
    assert not (tmp_path / "logits").exists()


@pytest.mark.parametrize(
    "imports",
    [
        "import bitwright\nfrom transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM\nimport bitwright",
        "import bitwright, importlib.util\nimportlib.util.find_spec('transformers')\n"
        "from transformers import AutoModelForCausalLM",
    ],
    ids=["before", "after", "looked-up"],
)
def test_from_pretrained_runs_packed_in_both_import_orders(packed: Path, tmp_path: Path, imports: str) -> None:
    from bitwright.runtime.load import load

    done = load_in_a_new_process(imports, packed, tmp_path / "logits")
    assert done.returncode == 0, done.stderr
    assert "QLinear" in done.stdout
    with torch.inference_mode():
        expected = load(packed)(torch.arange(20)[None]).logits
    assert (torch.load(tmp_path / "logits") - expected).abs().max() < 1e-5 * expected.abs().max()


def test_save_pretrained_round_trips_exactly(packed: Path, tmp_path: Path) -> None:
    from bitwright.artifact.read import open_artifact
    from bitwright.runtime.load import load

    model = load(packed)
    model.save_pretrained(tmp_path / "again")
    before, after = open_artifact(packed), open_artifact(tmp_path / "again")
    names = sorted(n for f in before.files for n in f.entries)
    assert names == sorted(n for f in after.files for n in f.entries)
    for name in names:
        assert before.tensor(name).dtype == after.tensor(name).dtype
        assert torch.equal(before.tensor(name), after.tensor(name))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "again")(ids).logits, model(ids).logits)


def test_planes_of_experts_keep_their_names(mixtral: Path, tmp_path: Path) -> None:
    """Checkpoints of Mixtral name experts otherwise than modules do; artifacts do not."""
    from bitwright.artifact.read import open_artifact
    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize
    from bitwright.runtime.load import load

    quantize(Job(model=str(mixtral), out=tmp_path / "packed", recipe="rtn", threads=1))
    load(tmp_path / "packed").save_pretrained(tmp_path / "again")
    before, after = (open_artifact(tmp_path / name) for name in ("packed", "again"))
    assert {n for f in before.files for n in f.entries} == {n for f in after.files for n in f.entries}
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "again")(ids).logits, load(tmp_path / "packed")(ids).logits)


def test_planes_that_are_loaded_anew_are_what_is_multiplied(packed: Path) -> None:
    """In place and in the place of the old ones, behind a first use, in copies too; the file stays as it is."""
    from bitwright.runtime.load import load

    ids = torch.arange(20)[None]
    model = load(packed)
    with torch.inference_mode():
        before = model(ids).logits
    doubled = {
        name: 2 * plane if plane.is_floating_point() else plane.clone() for name, plane in model.state_dict().items()
    }
    fresh, assigned, copied = load(packed), load(packed), copy.deepcopy(model)
    fresh.load_state_dict(doubled)
    for used in (assigned, copied):
        with torch.inference_mode():
            assert torch.equal(used(ids).logits, before)
    assigned.load_state_dict(doubled, assign=True)
    copied.load_state_dict(doubled)
    with torch.inference_mode():
        expected = fresh(ids).logits
        assert not torch.equal(expected, before)
        assert torch.equal(assigned(ids).logits, expected)
        assert torch.equal(copied(ids).logits, expected)
        assert torch.equal(load(packed)(ids).logits, before)


def test_casting_a_model_leaves_the_planes_alone(packed: Path) -> None:
    from bitwright.runtime.load import load

    model = load(packed)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    before = {name: plane.clone() for name, plane in layer.planes.items()}
    model.to(torch.bfloat16)
    assert all(
        torch.equal(plane, before[name]) and plane.dtype == before[name].dtype for name, plane in layer.planes.items()
    )
    with torch.inference_mode():
        assert model(torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "no-such-model"),
        ("model_type", None),
        ("num_attention_heads", 0),
        ("hidden_size", 128),
        ("intermediate_size", 100),
        ("vocab_size", 300),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1),
        ("attention_bias", True),
        ("hidden_size", 10**12),
    ],
)
def test_a_config_that_contradicts_the_planes_is_refused(packed: Path, tmp_path: Path, key: str, value: object) -> None:
    from bitwright.artifact.read import open_artifact
    from bitwright.errors import BadArtifact
    from bitwright.runtime import native
    from bitwright.runtime.engine import open_engine
    from bitwright.runtime.load import load

    folder = tmp_path / "altered"
    shutil.copytree(packed, folder)
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    if value is None:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadArtifact):
        load(folder)
    if native.available()[0]:
        with pytest.raises(BadArtifact):
            open_engine(open_artifact(folder))


def test_experts_run_packed_through_from_pretrained(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

    from bitwright.engine.job import Job
    from bitwright.engine.run import quantize
    from bitwright.runtime.load import load

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    quantize(Job(model=str(tmp_path / "model"), out=tmp_path / "out", recipe="rtn"))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = load(tmp_path / "out")(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
