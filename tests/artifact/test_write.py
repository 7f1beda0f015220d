import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from bitwright.artifact import write as writer
from bitwright.artifact.folder import draft
from bitwright.artifact.header import DTYPES
from bitwright.artifact.layout import INDEX
from bitwright.artifact.plan import plan_rows, tensors
from bitwright.artifact.read import TensorFile, load_block, open_artifact
from bitwright.artifact.write import Shard, plan_shards, predicted_bytes, save_block, write_manifest, write_shards
from bitwright.errors import BadInput, WorkFailed
from bitwright.protocols import PlaneSpec

specs = st.dictionaries(
    st.text("abc.é\"'", min_size=1, max_size=9),
    st.builds(
        PlaneSpec,
        st.sampled_from(list(DTYPES.values())),
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
    ),
    max_size=12,
)


def random_tensor(spec: PlaneSpec) -> torch.Tensor:
    """Any bytes but those of NaN, so that tensors can be compared."""
    raw = torch.randint(0, 2 if spec.dtype == torch.bool else 64, (spec.bytes,), dtype=torch.uint8)
    return raw.view(spec.dtype).reshape(spec.shape)


@given(specs, st.integers(1, 3000))
def test_files_are_as_predicted_and_as_the_library_reads_them(tmp_path_factory, plan, limit):
    folder = tmp_path_factory.mktemp("shards")
    source = {name: random_tensor(spec) for name, spec in plan.items()}
    shards = plan_shards(plan, limit)
    rows = write_shards(folder, shards, source.__getitem__)
    files = sorted(folder.glob("*.safetensors"))
    assert predicted_bytes(shards) == sum(f.stat().st_size for f in files) == sum(r.bytes for r in rows)
    found = {}
    for path, row in zip(files, rows, strict=True):
        assert (path.name, hashlib.sha256(path.read_bytes()).hexdigest()) == (row.name, row.sha256)
        ours = TensorFile(path)
        with safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == set(ours.entries)
            for name in ours.entries:
                assert torch.equal(theirs.get_tensor(name), ours.tensor(name))
                found[name] = ours.tensor(name)
    assert found.keys() == source.keys()
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in source.items())
    if len(files) > 1:
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(s.bytes for s in plan.values())
        assert set(index["weight_map"]) == set(source)


@given(specs, st.integers(1, 3000))
def test_shards_respect_limit_order_and_alignment(plan, limit):
    shards = plan_shards(plan, limit)
    order = {name: i for i, name in enumerate(plan)}
    assert sorted(order[n] for s in shards for n in s.tensors) == list(range(len(plan)))
    last = -1
    for shard in shards:
        sizes = [s.bytes for s in shard.tensors.values()]
        assert len(sizes) == 1 or sum(sizes) <= limit
        assert min((order[n] for n in shard.tensors), default=0) > last or not shard.tensors
        last = max((order[n] for n in shard.tensors), default=last)
        at = shard.bytes - sum(sizes)
        assert at % 64 == 0
        for spec in shard.tensors.values():
            assert at % spec.dtype.itemsize == 0
            assert at % 64 == 0 or spec.bytes % 64
            at += spec.bytes


def test_codes_of_an_artifact_start_on_64_bytes(folder, sample):
    with_codes = [f"{w.name}.weight" for w in sample.contents.quantization.weights]
    (file,) = open_artifact(folder).files
    assert [file.entries[n].start % 64 for n in with_codes] == [0] * len(with_codes)
    assert [file.tensor(n).data_ptr() % 64 for n in with_codes] == [0] * len(with_codes)


@pytest.mark.parametrize("limit", [1, 3000, 10**9])
def test_equal_contents_give_equal_folders(sample, tmp_path, limit):
    def bytes_of(folder):
        sample.write(folder, limit)
        return {p.name: p.read_bytes() for p in folder.iterdir()}

    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_manifest_adds_up(sample, tmp_path):
    manifest = sample.write(tmp_path, limit=3000)
    files = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    totals = manifest.totals
    assert files == totals.file_bytes == predicted_bytes(sample.contents.shards(3000))
    assert files == totals.header_bytes + totals.kept_bytes + sum(r.bytes for r in manifest.plan)
    block = [r for r in manifest.plan if r.part == "block"]
    assert len(block) == len(manifest.plan) - 1
    assert totals.block_weights == 20 * 100 + 17 * 64 + 3 * 16 * 20
    assert totals.stored_bits_per_weight == 8 * sum(r.bytes for r in block) / totals.block_weights
    assert {f.name for f in manifest.files} == {p.name for p in tmp_path.iterdir()} - {"README.md", "bitwright.json"}


def test_config_keeps_the_models_own_keys_and_replaces_an_older_quantization(folder, sample):
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_size"] == 40
    assert config["quantization_config"]["quant_method"] == "bitwright"
    assert list(config) == sorted(config)


def test_card_names_source_licence_and_usage(folder):
    card = (folder / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert 'base_model: "someone/something"' in card
    assert "```python\nimport bitwright" in card


def test_manifest_can_be_completed(sample, folder):
    manifest = open_artifact(folder).manifest
    write_manifest(folder, manifest.model_copy(update={"verification": {"logits_equal": True}}))
    reopened = open_artifact(folder)
    assert reopened.manifest.verification == {"logits_equal": True}
    reopened.verify_hashes()


def test_tensor_other_than_planned_is_an_error(tmp_path):
    shards = plan_shards({"a": PlaneSpec(torch.uint8, (4,))})
    with pytest.raises(WorkFailed, match="a was planned as"):
        write_shards(tmp_path, shards, lambda _: torch.zeros(4))


def test_names_that_clash_and_types_that_cannot_be_stored(sample):
    clash = {"model.layers.0.q_proj.scales": PlaneSpec(torch.float32, (1,))}
    with pytest.raises(BadInput, match=r"q_proj\.scales"):
        tensors(sample.contents.quantization, clash)
    with pytest.raises(BadInput, match="complex64"):
        predicted_bytes(plan_shards({"z": PlaneSpec(torch.complex64, (1,))}))


def test_bits_are_checked_against_planes(sample, monkeypatch):
    from bitwright.bits import Bits
    from bitwright.formats.integer import Integer

    monkeypatch.setattr(Integer, "bits", lambda self, shape: Bits(codes=8))
    with pytest.raises(WorkFailed, match="counts 8 bits"):
        plan_rows(sample.contents.quantization, {})


def test_full_disk_is_one_sentence_and_leaves_nothing(sample, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    out = tmp_path / "out"
    monkeypatch.setattr(writer.os, "fsync", full)
    with pytest.raises(BadInput, match="no space left on device") as caught, draft(out) as folder:
        sample.write(folder)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_partial_write_of_a_block_leaves_nothing(tmp_path):
    """The kernel itself refuses after 4 kB."""
    code = f"""
import resource, torch
from pathlib import Path
from bitwright.artifact.write import save_block
from bitwright.errors import BadInput
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
try:
    save_block(Path({str(tmp_path)!r}) / "0.safetensors", {{"a": torch.zeros(100_000)}})
except BadInput as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "file too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_block_round_trip(tmp_path):
    path = tmp_path / "0.safetensors"
    block = {"a.weight": torch.arange(64, dtype=torch.uint8).view(1, 1, 64), "b": torch.randn(3).half()}
    sha256 = save_block(path, block)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == save_block(path, block)
    found = load_block(path, sha256)
    assert found.keys() == block.keys()
    assert all(torch.equal(found[n], t) for n, t in block.items())
    assert list(tmp_path.iterdir()) == [path]


def test_empty_plan_is_a_valid_file(tmp_path):
    (shard,) = plan_shards({})
    assert shard == Shard("model.safetensors", {})
    write_shards(tmp_path, [shard], lambda name: torch.empty(0))
    assert TensorFile(Path(tmp_path / shard.name)).entries == {}
