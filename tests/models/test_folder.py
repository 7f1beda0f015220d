"""A model folder gives every tensor of the transformers modules, exactly, without holding the model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bitwright.errors import BadInput, BitwrightError, Refused, UnknownName
from bitwright.models import identity
from bitwright.models.identity import file_digest, joint_digest
from bitwright.models.mapped import MappedFile
from bitwright.models.source import open_source

from .conftest import FAMILIES, tiny

Saved = Callable[..., Path]


@pytest.mark.parametrize("shards", ["5GB", "30KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_equals_the_module(family: str, shards: str, saved: Saved) -> None:
    folder = saved(family, shards)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards != "5GB")
    source = open_source(str(folder))
    model = tiny(family)
    expected = dict(model.named_parameters()) | dict(model.named_buffers())  # tied ones once
    expected = {k: v for k, v in expected.items() if k in model.state_dict()}
    assert list(source.names()) == [k for k in model.state_dict() if k in expected]
    for name, tensor in expected.items():
        assert torch.equal(source.tensor(name), tensor), name
        assert source.shape(name) == tuple(tensor.shape)
    assert "unused_tensors" not in source.lineage()


@pytest.mark.parametrize(
    ("family", "stored"),
    [("mixtral", r"experts\.2\.w3\.weight"), ("qwen3-moe", r"experts\.2\.up_proj\.weight")],
)
def test_files_of_mixtures_hold_experts_one_by_one(family: str, stored: str, saved: Saved) -> None:
    with safe_open(saved(family) / "model.safetensors", "pt") as file:
        assert any(re.search(stored, key) for key in file.keys())  # noqa: SIM118
    assert not any(re.search(stored, name) for name in open_source(str(saved(family))).names())


def test_tensors_are_views_of_the_mapped_file(saved: Saved) -> None:
    source = open_source(str(saved("llama")))
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.tensor(name).data_ptr() == source.tensor(name).data_ptr()
    ids = torch.tensor([5, 0, 5])
    assert torch.equal(source.rows(name, ids), source.tensor(name)[ids])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_reading_adds_no_private_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save_file({"w": torch.ones(16, 1024, 1024)}, path)  # 64 MB

    def private() -> int:
        fields = Path("/proc/self/status").read_text().split()
        return int(fields[fields.index("RssAnon:") + 1])

    before = private()
    view = MappedFile(path).tensor("w")
    assert view.sum() == view.numel()
    assert private() - before < 8 << 10


def test_a_tie_that_the_file_breaks_is_no_tie(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("llama-tied"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, folder / "model.safetensors")
    assert "lm_head.weight" not in open_source(str(folder)).names()
    save_file(tensors | {"lm_head.weight": table + 1}, folder / "model.safetensors")
    source = open_source(str(folder))
    assert torch.equal(source.tensor("lm_head.weight"), table + 1)
    assert not source.config.tie_word_embeddings


def test_a_tied_matrix_may_be_stored_under_the_name_of_the_head(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("llama-tied"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | {"lm_head.weight": table}, folder / "model.safetensors")
    source = open_source(str(folder))
    assert torch.equal(source.tensor("model.embed_tokens.weight"), table)
    assert "lm_head.weight" not in source.names()


def test_companions_licence_and_lineage(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Model\nlicense: none\n")
    (folder / "LICENSE").write_text("terms")
    source = open_source(str(folder))
    assert source.licence == "mit"
    out = tmp_path / "out"
    out.mkdir()
    source.save_companions(out)
    assert not (out / "config.json").exists()
    assert (out / "LICENSE").read_text() == "terms"
    copied = source.tokenizer().from_pretrained(out)
    assert copied.chat_template == source.tokenizer().chat_template
    assert copied("ab c").input_ids == source.tokenizer()("ab c").input_ids
    lineage = source.lineage()
    assert lineage["kind"] == "safetensors"
    assert lineage["digest"] == source.digest()
    assert {f["name"] for f in lineage["files"]} == {"config.json", "model.safetensors"}  # type: ignore[attr-defined]
    assert json.dumps(lineage)


def test_digest_is_the_models_own(saved: Saved, tmp_path: Path) -> None:
    first = shutil.copytree(saved("opt"), tmp_path / "a")
    second = shutil.copytree(saved("opt"), tmp_path / "b")
    digest = open_source(str(first)).digest()
    assert open_source(str(second)).digest() == digest
    tensors = load_file(second / "model.safetensors")
    tensors["model.decoder.layers.1.fc2.bias"][0] += 1
    save_file(tensors, second / "model.safetensors")
    assert open_source(str(second)).digest() != digest
    config = json.loads((first / "config.json").read_text()) | {"activation_function": "gelu"}
    (first / "config.json").write_text(json.dumps(config))
    assert open_source(str(first)).digest() != digest


def test_large_files_are_sampled_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 64)
    whole = file_digest(path)
    assert joint_digest([("weights", whole)]) == whole
    monkeypatch.setattr(identity, "FULL", 1000)
    monkeypatch.setattr(identity, "PIECE", 16)
    sampled = file_digest(path)
    assert sampled.startswith("sampled-")
    assert sampled == file_digest(path)
    path.write_bytes(path.read_bytes() + b"x")
    assert file_digest(path) != sampled


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def overlong_offsets(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"]["data_offsets"][1] += 64
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], type[BitwrightError], str]] = {
    "truncated": (cut, BadInput, "is truncated"),
    "a folder instead of tensors": (no_file, BadInput, "cannot be read"),
    "truncated header": (cut_header, BadInput, "is truncated"),
    "offsets beyond the shape": (overlong_offsets, BadInput, "no valid safetensors header"),
    "pickle": (only_pickle, Refused, "pickled weights .pytorch_model.bin."),
    "no weights": (without_weights, BadInput, "no model.safetensors"),
    "no config": (without_config, BadInput, "no config.json"),
    "empty": (empty, BadInput, "is empty"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), BadInput, "config.json is not"),
    "unknown type": (lambda f: change_config(f, model_type="xyz"), BadInput, "not usable by transformers"),
    "no language model": (lambda f: change_config(f, model_type="vit"), Refused, "no causal language model"),
    "own code": (lambda f: change_config(f, auto_map={"AutoModel": "m.M"}), Refused, "own model code"),
    "quantized": (lambda f: change_config(f, quantization_config={"quant_method": "gptq"}), Refused, "quantized .gptq"),
    "artifact": (lambda f: (f / "bitwright.json").write_text("{}"), Refused, "already quantized by bitwright"),
    "missing shard": (missing_shard, BadInput, "lacks model-00001-of-00002.safetensors"),
    "missing tensor": (missing_tensor, BadInput, "lacks the tensor model.norm.weight"),
    "other shape": (lambda f: change_config(f, intermediate_size=64), BadInput, "its config asks for"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_unusable_folders_are_refused_in_one_sentence(what: str, saved: Saved, tmp_path: Path) -> None:
    damage, error, words = BROKEN[what]
    folder = shutil.copytree(saved("llama"), tmp_path / "model")
    damage(folder)
    with pytest.raises(error, match=words) as caught:
        open_source(str(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_truncation_is_noticed(saved: Saved, tmp_path: Path) -> None:
    data = (saved("opt") / "model.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [*range(12), *range(100, len(data), len(data) // 20), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(BadInput):
            MappedFile(path)


def test_names_that_are_nothing() -> None:
    with pytest.raises(UnknownName, match="smollm2"):
        open_source("smolm2")
    with pytest.raises(BadInput, match="models are not downloaded"):
        open_source("someone/some-model")
    with pytest.raises(BadInput, match=r"no \.gguf file"):
        open_source(__file__)
