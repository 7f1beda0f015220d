"""Beginnings of a file: only they are read, each is a model, and files that cannot be read so are refused."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifact import stacks
from bitwright.artifact.layout import SINGLE
from bitwright.artifact.prefix import PartFile, Prefix
from bitwright.artifact.read import open_artifact
from bitwright.artifact.steps import placed
from bitwright.errors import BadArtifact, Refused
from bitwright.runtime.describe import beginnings, loaded_bits

GOLDEN = Path(__file__).parents[1] / "golden" / "v1-stack"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stacks.write(tmp_path / "stacks")
    return tmp_path / "stacks"


def ends(folder: Path) -> list[int]:
    """Bytes of every beginning that is a model."""
    artifact = open_artifact(folder)
    smallest, steps = placed(artifact.files[0].entries, artifact.quantization, "file")
    return [smallest, *(own.stop for own in steps)]


def decoded(prefix: Prefix) -> dict[str, torch.Tensor]:
    part = prefix.part
    return {w.name: part.qtensor(w.name).dequantize() for w in part.weights()}


def test_the_file_is_in_the_order_of_the_steps(folder: Path) -> None:
    artifact = open_artifact(folder)
    _, steps = placed(artifact.files[0].entries, artifact.quantization, "file")
    assert tuple(f"{own.step.weight}{own.step.block}" for own in steps) == stacks.ORDER
    assert steps[-1].stop == artifact.file_bytes()
    assert all(after.start == before.stop for before, after in pairwise(steps))


def test_every_budget_is_the_model_of_the_steps_that_fit(folder: Path) -> None:
    sizes = ends(folder)
    blocks = dict.fromkeys("abc", 1)
    for count, size in enumerate(sizes):
        if count:
            blocks[stacks.ORDER[count - 1][0]] += 1
        for budget in {size, size + 1 if count + 1 < len(sizes) else size}:
            prefix = Prefix(folder, budget)
            assert (prefix.bytes, prefix.count, prefix.blocks) == (size, count, blocks)
    whole = decoded(Prefix(folder))
    artifact = open_artifact(folder)
    assert all(torch.equal(w, artifact.qtensor(name).dequantize()) for name, w in whole.items())


def test_only_the_beginning_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, int]] = []
    read = os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = read(fd, buffers, offset)
        reads.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", counted)
    for size in ends(folder):
        reads.clear()
        prefix = Prefix(folder, size)
        assert sum(count for _, count in reads) == size == prefix.bytes
        assert sorted(reads)[0][0] == 0
        assert max(offset + count for offset, count in reads) == size
    prefix = Prefix(folder, ends(folder)[0])
    reads.clear()
    prefix.resize(None)
    assert sum(count for _, count in reads) == ends(folder)[-1] - ends(folder)[0]  # nothing twice
    reads.clear()
    prefix.resize(ends(folder)[3])
    assert not reads


def test_growing_and_shrinking_lead_to_the_same_weights(folder: Path) -> None:
    sizes = ends(folder)
    fresh = [decoded(Prefix(folder, size)) for size in sizes]
    prefix = Prefix(folder, sizes[2])
    for target in (5, 1, 8, 0, 4):
        before = prefix.blocks
        changed = prefix.resize(sizes[target])
        assert changed == {name for name in before if before[name] != prefix.blocks[name]}
        now = decoded(prefix)
        assert all(torch.equal(now[name], w) for name, w in fresh[target].items())


def test_what_is_missing_behind_the_beginning_does_not_matter(folder: Path) -> None:
    sizes = ends(folder)
    expected = decoded(Prefix(folder, sizes[3]))
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[: sizes[3]])
    found = Prefix(folder, sizes[4] - 1)
    assert found.bytes == sizes[3]
    assert all(torch.equal(w, expected[name]) for name, w in decoded(found).items())
    for budget in (None, sizes[4]):
        with pytest.raises(BadArtifact, match="ends after"):
            Prefix(folder, budget)
        with pytest.raises(BadArtifact, match="ends after"):
            found.resize(budget)
    with pytest.raises(BadArtifact, match="truncated"):
        open_artifact(folder)
    (folder / SINGLE).write_bytes(raw[: sizes[0] - 1])
    with pytest.raises(BadArtifact, match="ends after"):
        Prefix(folder, sizes[0])
    (folder / SINGLE).write_bytes(raw[:100])
    with pytest.raises(BadArtifact, match="truncated inside its header"):
        Prefix(folder, sizes[0])


def test_budgets_that_cannot_be(folder: Path) -> None:
    sizes = ends(folder)
    for budget, told in ((0, "too small"), (sizes[0] - 1, "too small"), (sizes[-1] + 1, "more than")):
        with pytest.raises(Refused, match=told):
            Prefix(folder, budget)
    prefix = Prefix(folder, sizes[2])
    with pytest.raises(Refused, match="too small"):
        prefix.resize(1)
    assert prefix.bytes == sizes[2]


@pytest.mark.parametrize(
    "order",
    [
        ("a2", "a1", *(step for step in stacks.ORDER if step[0] != "a"), "a3"),
        (*(step for step in stacks.ORDER if step != "b1"), "b1"),
    ],
)
def test_a_block_before_the_one_it_builds_on(tmp_path: Path, order: tuple[str, ...]) -> None:
    stacks.write(tmp_path / "out", order)
    assert open_artifact(tmp_path / "out").formats == stacks.FORMATS  # as a whole it is a model
    with pytest.raises(BadArtifact, match="cannot be read in part"):
        Prefix(tmp_path / "out", 10**6)


def test_tensors_inside_or_behind_a_step(folder: Path) -> None:
    """As transformers saves them: by name. Without a manifest, which would tell that the files are others."""
    stored = load_file(folder / SINGLE)
    save_file(stored, folder / SINGLE, {"format": "pt"})
    (folder / "bitwright.json").unlink()
    assert open_artifact(folder).formats == stacks.FORMATS
    assert beginnings(open_artifact(folder)) is None
    with pytest.raises(BadArtifact, match="cannot be read in part"):
        Prefix(folder)


def test_headers_that_lie(folder: Path) -> None:
    """Overlaps, sizes and shapes are refused before anything but the header is read."""
    raw = (folder / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]

    def put(**changes: object) -> None:
        changed = {**table, "a.weight1": {**table["a.weight1"], **changes}}
        text = json.dumps(changed).encode()
        (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)

    start, stop = table["a.weight1"]["data_offsets"]
    for changes in (
        {"data_offsets": [start - 64, stop - 64]},
        {"data_offsets": [start, stop + 2**40]},
        {"shape": [2**40, 64], "data_offsets": [start, start + 2**46]},
        {"dtype": "F64"},
        {"shape": [1, stop - start], "data_offsets": [start, stop]},
    ):
        put(**changes)
        with pytest.raises(BadArtifact):
            Prefix(folder, 10**6)


def test_damaged_values_are_found_when_they_are_read(folder: Path) -> None:
    sizes = ends(folder)
    entry = PartFile(folder / SINGLE).entries["b.scales2"]
    raw = bytearray((folder / SINGLE).read_bytes())
    raw[entry.start : entry.start + 2] = b"\x00\x7c"  # infinity
    (folder / SINGLE).write_bytes(raw)
    prefix = Prefix(folder, sizes[6])
    before = decoded(prefix)
    with pytest.raises(BadArtifact, match="'b' holds a scale that is not finite"):
        prefix.resize(None)
    assert prefix.bytes == sizes[6]
    assert all(torch.equal(w, before[name]) for name, w in decoded(prefix).items())


def test_without_blocks_there_is_no_budget(tmp_path: Path, sample) -> None:
    sample.write(tmp_path / "plain")
    with pytest.raises(BadArtifact, match="no weights in blocks"):
        Prefix(tmp_path / "plain", 10**6)
    sample.write(tmp_path / "shards", limit=1000)
    with pytest.raises(BadArtifact, match="several files"):
        Prefix(tmp_path / "shards", 10**6)


def test_bits_that_are_loaded_and_the_curve(folder: Path) -> None:
    told = beginnings(open_artifact(folder))
    assert told is not None
    sizes = ends(folder)
    assert (told["smallest_bytes"], told["steps"], told["tokens"]) == (sizes[0], 8, 64)
    assert [row["kl"] for row in told["curve"]] == [0.5, 0.125]
    for row in told["curve"]:
        assert row["stored_bits_per_weight"] == loaded_bits(Prefix(folder, row["bytes"]))
    manifest = open_artifact(folder).manifest
    assert manifest is not None
    assert loaded_bits(Prefix(folder)) == manifest.totals.stored_bits_per_weight


def test_golden() -> None:
    """Written once by `stacks.write`; stays readable, part by part, to the same weights."""
    expected = load_file(GOLDEN / "decoded.safetensors")
    sizes = ends(GOLDEN / "artifact")
    for key, w in expected.items():
        count, _, name = key.partition(".")
        assert torch.equal(decoded(Prefix(GOLDEN / "artifact", sizes[int(count)]))[name], w)


if __name__ == "__main__":
    stacks.write(GOLDEN / "artifact")
    weights = {
        f"{count}.{name}": w
        for count, size in enumerate(ends(GOLDEN / "artifact"))
        for name, w in decoded(Prefix(GOLDEN / "artifact", size)).items()
        if count % 4 == 0
    }
    save_file(weights, GOLDEN / "decoded.safetensors")
