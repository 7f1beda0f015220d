import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from bitwright.artifact.layout import INDEX, MANIFEST
from bitwright.artifact.read import open_artifact
from bitwright.errors import BadArtifact, UnknownName


@pytest.mark.parametrize("limit", [1, 3000, 10**9])
def test_round_trip(sample, tmp_path, limit):
    sample.write(tmp_path, limit)
    artifact = open_artifact(tmp_path)
    artifact.verify_hashes()
    assert artifact.quantization == sample.contents.quantization
    assert set(artifact.kept) == set(sample.contents.kept)
    assert artifact.file_bytes() == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    for name, tensor in sample.tensors.items():
        found = artifact.tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)
    for weight in artifact.weights():
        dense = [artifact.qtensor(weight.name, e).dequantize() for e in range(weight.experts)]
        assert torch.equal(torch.stack(dense).reshape(weight.shape), sample.dense[weight.name])


def as_transformers_saves(sample, folder, shards=1):
    """The library's own writer: other order, other alignment, no manifest."""
    (folder / MANIFEST).unlink()
    (folder / "model.safetensors").unlink()
    names = sorted(sample.tensors)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    if shards == 1:
        files = {"model.safetensors": names}
    for file, held in files.items():
        save_file({n: sample.tensors[n].clone() for n in held}, folder / file, {"format": "pt"})
    if shards > 1:
        weight_map = {n: file for file, held in files.items() for n in held}
        index = {"metadata": {"total_parameters": 5, "total_size": 10}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_what_the_library_writes(sample, folder, shards):
    as_transformers_saves(sample, folder, shards)
    artifact = open_artifact(folder)
    assert artifact.manifest is None
    assert all(torch.equal(artifact.tensor(n), t) for n, t in sample.tensors.items())
    with pytest.raises(BadArtifact, match="no hashes"):
        artifact.verify_hashes()


def test_misaligned_tensors_are_read(tmp_path, sample, folder):
    """Allowed by the format, though no writer we know does it."""
    path = folder / "model.safetensors"
    kept = {"a": torch.tensor([1, 2, 3], dtype=torch.uint8), "b": torch.tensor([0.5, -2.0])}
    table = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(table).encode()
    raw = kept["a"].numpy().tobytes() + kept["b"].numpy().tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw)
    (folder / MANIFEST).unlink()
    config = {"quantization_config": {"quant_method": "bitwright", "version": 1, "formats": [], "weights": []}}
    (folder / "config.json").write_text(json.dumps(config))
    artifact = open_artifact(folder)
    assert all(torch.equal(artifact.tensor(n), t) for n, t in kept.items())


def test_folder_of_a_hub_cache(folder, tmp_path):
    """Snapshots hold links into the blobs beside them."""
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.move(path, blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    open_artifact(snapshot).verify_hashes()


def test_mapped_tensors_outlive_the_artifact(folder, sample):
    tensor = open_artifact(folder).tensor("model.norm.weight")
    assert torch.equal(tensor, sample.tensors["model.norm.weight"])


def test_names_that_do_not_exist(folder):
    artifact = open_artifact(folder)
    with pytest.raises(UnknownName, match=r"model\.norm\.weight"):
        artifact.tensor("model.norm.weigh")
    with pytest.raises(UnknownName, match="q_proj"):
        artifact.qtensor("model.layers.0.q_prj")


def test_altered_bytes_are_found(folder):
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadArtifact, match=r"model\.safetensors was altered"):
        open_artifact(folder).verify_hashes()
    (folder / "tokenizer.json").unlink()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(BadArtifact, match=r"tokenizer\.json is missing"):
        open_artifact(folder).verify_hashes()
