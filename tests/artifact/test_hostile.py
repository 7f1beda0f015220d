"""Folders that must be refused, each with one sentence, and folders damaged at random."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitwright.artifact.layout import CONFIG, INDEX, MANIFEST, SINGLE
from bitwright.artifact.read import TensorFile, open_artifact
from bitwright.errors import BadArtifact


def row(shape, start, end, dtype="U8", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def raw_file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


HEADERS = {
    "empty file": (b"", "truncated inside its header"),
    "half a length": (b"\1\0\0", "truncated inside its header"),
    "truncated header": (raw_file({"a": row([4], 0, 4)})[:20], "truncated inside its header"),
    "header longer than the file": (raw_file({}, b"", 2**63), "truncated inside its header"),
    "huge header": (raw_file(b" " * (65 << 20)), "more than the"),
    "no JSON": (raw_file(b"{a: 1}"), "not valid JSON"),
    "not UTF-8": (raw_file(b'{"\xff": 1}'), "not valid JSON"),
    "UTF-16": (raw_file("{}".encode("utf-16")), "not valid JSON"),
    "endless nesting": (raw_file(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "endless number": (raw_file(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "list": (raw_file([]), "no JSON object"),
    "duplicate key": (raw_file(b'{"a":1,"a":2}'), "twice"),
    "metadata": (raw_file({"__metadata__": {"a": 1}}), "no strings"),
    "metadata list": (raw_file({"__metadata__": []}), "no strings"),
    "entry is a number": (raw_file({"a": 1}), "nothing else"),
    "entry with more": (raw_file({"a": row([1], 0, 1, more=1)}, b"x"), "nothing else"),
    "unknown type": (raw_file({"a": row([1], 0, 1, "F4")}, b"x"), "unknown type"),
    "type is a list": (raw_file({"a": row([1], 0, 1, [])}, b"x"), "unknown type"),
    "shape overflows": (raw_file({"a": row([2**62, 4], 0, 0)}), "impossible shape"),
    "shape overflows beside a zero": (raw_file({"a": row([0, 2**62, 2**62], 0, 0)}), "impossible shape"),
    "shape is negative": (raw_file({"a": row([-1, -4], 0, 4)}, b"1234"), "impossible shape"),
    "shape is true": (raw_file({"a": row([True], 0, 1)}, b"1"), "impossible shape"),
    "shape is float": (raw_file({"a": row([4.0], 0, 4)}, b"1234"), "impossible shape"),
    "shape is a number": (raw_file({"a": row(4, 0, 4)}, b"1234"), "impossible shape"),
    "many dimensions": (raw_file({"a": row([1] * 100, 0, 1)}, b"1"), "impossible shape"),
    "offsets do not fit": (raw_file({"a": row([4], 0, 3)}, b"123"), "do not fit"),
    "offsets negative": (raw_file({"a": row([4], -4, 0)}, b"1234"), "do not fit"),
    "offsets reversed": (raw_file({"a": row([4], 4, 0)}, b"1234"), "do not fit"),
    "three offsets": (raw_file({"a": {**row([4], 0, 4), "data_offsets": [0, 4, 4]}}, b"1234"), "do not fit"),
    "out of bounds": (raw_file({"a": row([4], 0, 4)}, b"12"), "truncated"),
    "far out of bounds": (raw_file({"a": row([2**50], 0, 2**50)}, b"12"), "truncated"),
    "overlap": (raw_file({"a": row([4], 0, 4), "b": row([4], 2, 6)}, b"123456"), "overlaps"),
    "same place": (raw_file({"a": row([4], 0, 4), "b": row([4], 0, 4)}, b"1234"), "overlaps"),
    "gap": (raw_file({"a": row([4], 0, 4), "b": row([4], 6, 10)}, b"1234567890"), "gap"),
    "gap at the start": (raw_file({"a": row([4], 2, 6)}, b"123456"), "gap"),
    "trailing bytes": (raw_file({"a": row([4], 0, 4)}, b"12345"), "appended"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_file(tmp_path, name):
    raw, message = HEADERS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(BadArtifact, match=message) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def edit(name, change):
    """An edit of one JSON file of the folder; `change` alters the data in place or returns new data."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        changed = change(data)
        (folder / name).write_text(json.dumps(data if changed is None else changed))

    return apply


def quantization(change):
    return edit(CONFIG, lambda config: change(config["quantization_config"]))


def put(*path):
    """Sets a value of `quantization_config`; the last of `path` is the value."""
    *keys, last, value = path

    def change(data):
        for key in keys:
            data = data[key]
        data[last] = value

    return quantization(change)


def remove(name):
    return lambda folder: (folder / name).unlink()


def link_out(folder: Path) -> None:
    shutil.move(folder / SINGLE, folder.parent / SINGLE)
    (folder / SINGLE).symlink_to(folder.parent / SINGLE)


def pipe(folder: Path) -> None:
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)


def old_words(data):
    data["version"] = 1
    data["formats"][0] = {"kind": "mixed", "low": {"kind": "trellis", "per_word": 32}}


def other_shape(data):
    data["weights"][1]["shape"] = [20, 64]


FOLDERS = {
    "no config": (remove(CONFIG), "config.json is missing"),
    "config is a list": (edit(CONFIG, lambda config: []), "describes no bitwright model"),
    "not quantized": (edit(CONFIG, lambda config: {}), "describes no bitwright model"),
    "another method": (put("quant_method", "gptq"), "describes no bitwright model"),
    "later version": (put("version", 3), "is of version 3"),
    "words of version 1": (quantization(old_words), "decoded otherwise since version 2"),
    "version is a word": (put("version", "1"), "is of version '1'"),
    "version is true": (put("version", True), "is of version True"),
    "unknown key": (put("online", {}), "online"),
    "weights is an object": (put("weights", {}), "weights"),
    "weight is a list": (put("weights", 0, ["a", 0, [1, 1]]), "weights.0"),
    "format is a word": (put("weights", 0, "format", "0"), "weights.0.format"),
    "format is not there": (put("weights", 0, "format", 4), "there are 4"),
    "format is negative": (put("weights", 0, "format", -1), "weights.0.format"),
    "one dimension": (put("weights", 0, "shape", [8]), "weights.0.shape"),
    "zero rows": (put("weights", 0, "shape", [0, 8]), "impossible shape"),
    "huge rows": (put("weights", 0, "shape", [2**62, 4]), "impossible shape"),
    "huge columns": (put("weights", 0, "shape", [4, 2**62]), "impossible shape"),
    "shape with a fraction": (put("weights", 0, "shape", [33.0, 40.5]), "weights.0.shape"),
    "name is a number": (put("weights", 0, "name", 1), "weights.0.name"),
    "one module twice": (put("weights", 0, "name", "model.layers.0.q_proj"), "twice"),
    "unknown kind": (put("formats", 0, "kind", "integr"), "Did you mean 'integer'"),
    "kind of a solver": (put("formats", 0, {"kind": "rtn"}), "is none"),
    "no kind": (put("formats", 0, {}), "spec.kind"),
    "format is no object": (put("formats", 0, "integer"), "formats.0"),
    "unknown field of a format": (put("formats", 0, "bias", 1), "bias"),
    "field of the wrong type": (put("formats", 0, "group", "32"), "group"),
    "field that cannot be": (put("formats", 0, "bits_per_code", 9), "bits_per_code"),
    "a rotation of a rotation": (
        put("formats", 0, {"kind": "rotated", "inner": {"kind": "rotated", "inner": {"kind": "integer"}}}),
        "inner",
    ),
    "endless nesting of formats": (
        lambda folder: (folder / CONFIG).write_text(
            '{"quantization_config":{"quant_method":"bitwright","version":1,"weights":[],"formats":['
            + '{"kind":"mixed","low":' * 400
            + "1"
            + "}" * 400
            + "]}}"
        ),
        "cannot be used",
    ),
    "not a number": (put("formats", 0, "group", float("nan")), "cannot be used"),
    "planes of another shape": (quantization(other_shape), "needs"),
    "planes of another format": (put("weights", 1, "format", 0), "needs"),
    "plane missing": (put("weights", 0, "name", "model.embed"), "'model.embed.weight' is missing"),
    "tied to nothing": (put("tied", [["lm_head", "model.nowhere"]]), "ties"),
    "tied and stored": (put("tied", [["model.norm", "model.embed_tokens"]]), "ties"),
    "tied and listed": (put("tied", [["model.embed_tokens", "lm_head"]]), "of its own"),
    "weights missing": (remove(SINGLE), "model.safetensors is missing"),
    "stray shard": (lambda folder: (folder / "model-2.safetensors").write_bytes(b""), "belongs to no index"),
    "link out of the folder": (link_out, "leaves the folder"),
    "pipe": (pipe, "is missing or no file"),
    "manifest of a later version": (edit(MANIFEST, lambda m: m.update(version=3)), "is of version 3"),
    "manifest with more": (edit(MANIFEST, lambda m: m.update(more=1)), "more"),
    "manifest with other bits": (edit(MANIFEST, lambda m: m["plan"][0]["bits"].update(codes=1)), "plans other"),
    "manifest with other weights": (edit(MANIFEST, lambda m: m["plan"].pop() and None), "plans other"),
    "manifest with other tensors": (edit(MANIFEST, lambda m: m["kept"].pop() and None), "other unquantized"),
    "manifest with other files": (edit(MANIFEST, lambda m: m["files"][0].update(bytes=1)), "other weight files"),
    "manifest that looks outside": (
        edit(MANIFEST, lambda m: m["files"].append({"name": "../../passwd", "bytes": 1, "sha256": "0" * 64})),
        "outside the folder",
    ),
    "manifest is no JSON": (lambda folder: (folder / MANIFEST).write_text("{"), "not valid JSON"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_hostile_folder(folder, name):
    apply, message = FOLDERS[name]
    apply(folder)
    with pytest.raises(BadArtifact, match=message) as caught:
        open_artifact(folder)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def index(change):
    return edit(INDEX, lambda data: change(data["weight_map"]))


def name_shard(name):
    return index(lambda table: table.update({"model.norm.weight": name}))


SHARDED = {
    "traversal": (name_shard("../model.safetensors"), "no plain safetensors file name"),
    "absolute": (name_shard("/etc/passwd"), "no plain safetensors file name"),
    "hidden": (name_shard(".safetensors"), "no plain safetensors file name"),
    "endless name": (name_shard("a" * 5000 + ".safetensors"), "no plain safetensors file name"),
    "not there": (name_shard("model-9.safetensors"), "is missing"),
    "shard removed": (lambda folder: min(folder.glob("model-*")).unlink(), "is missing"),
    "another file": (lambda folder: name_shard(min(folder.glob("model-*")).name)(folder), "disagree"),
    "more tensors": (index(lambda t: t.update(extra=next(iter(t.values())))), "disagree"),
    "fewer tensors": (index(lambda t: t.pop("model.norm.weight") and None), "disagree"),
    "map is a list": (edit(INDEX, lambda data: {"weight_map": []}), "weight_map"),
    "name is a number": (index(lambda t: t.update(extra=1)), "weight_map"),
    "index is empty": (edit(INDEX, lambda data: {"weight_map": {}}), "belongs to no index"),
    "no index": (remove(INDEX), "belongs to no index"),
    "one tensor twice": (
        lambda folder: shutil.copy(*sorted(folder.glob("model-*"))[:2]),
        "holds too|disagree",
    ),
}


@pytest.mark.parametrize("name", SHARDED)
def test_hostile_shards(sample, tmp_path, name):
    sample.write(tmp_path / "artifact", limit=3000)
    apply, message = SHARDED[name]
    apply(tmp_path / "artifact")
    with pytest.raises(BadArtifact, match=message):
        open_artifact(tmp_path / "artifact")


def test_planes_of_no_format_are_refused_without_a_manifest_too(folder):
    """Nothing but a bias may stand beside the planes of a weight."""
    (folder / MANIFEST).unlink()
    config = json.loads((folder / CONFIG).read_text())
    table = config["quantization_config"]
    table["weights"][2:3] = []
    (folder / CONFIG).write_text(json.dumps(config))
    open_artifact(folder)  # planes of a weight that is not listed are merely tensors
    table["formats"][2] = {"kind": "binary", "group": 64, "mean": True}
    table["weights"].append({"name": "model.layers.0.up_proj", "format": 2, "shape": [17, 64]})
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(BadArtifact, match="is no plane of its weight's format"):
        open_artifact(folder)


def test_unreadable_place(tmp_path):
    with pytest.raises(BadArtifact, match="is no folder"):
        open_artifact(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtifact, match=r"config\.json is missing"):
        open_artifact(tmp_path / "empty")


@pytest.fixture(scope="module")
def pristine(sample, tmp_path_factory):
    """A sharded artifact as bytes by file name, without the card, which no reader reads."""
    folder = tmp_path_factory.mktemp("pristine")
    sample.write(folder, limit=6000)
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".md"}


damage = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1 << 16), st.sampled_from(["flip", "cut", "grow", "digit", "swap"])),
    min_size=1,
    max_size=3,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(damage=damage, manifest=st.booleans(), header=st.booleans())
def test_random_damage_is_refused_or_found_by_the_hashes(sample, pristine, tmp_path_factory, damage, manifest, header):
    folder = tmp_path_factory.mktemp("damaged")
    files = {n: bytearray(raw) for n, raw in pristine.items() if manifest or n != MANIFEST}
    for which, where, how in damage:
        raw = files[sorted(files)[which % len(files)]]
        at = where % min(len(raw), 1200 if header else len(raw)) if raw else 0
        if how == "cut":
            del raw[at:]
        elif how == "grow":
            raw[at:at] = b"0"
        elif raw and how == "flip":
            raw[at] ^= 1 << where % 8
        elif raw and how == "digit":
            raw[at] = 48 + where % 10
        elif raw and how == "swap":
            raw[at], raw[-1 - at] = raw[-1 - at], raw[at]
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    try:
        artifact = open_artifact(folder)
        stored = {name: artifact.tensor(name) for file in artifact.files for name in file.entries}
        for weight in artifact.weights():
            artifact.qtensor(weight.name)
        artifact.verify_hashes()
    except BadArtifact as refused:
        assert "\n" not in str(refused)  # noqa: PT017 (both outcomes are right)
    else:
        assert all(torch.equal(stored[name], t) for name, t in sample.tensors.items())
    finally:
        shutil.rmtree(folder)
