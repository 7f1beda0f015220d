"""Version 1 as it was released: these files must stay readable. `python tests/artifact/test_golden.py` made them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.artifact.layout import Origin, Quantization, RecipeRow, Weight
from bitwright.artifact.read import open_artifact
from bitwright.artifact.write import Contents, write_artifact, write_shards
from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.ternary import Ternary
from bitwright.partitions.salience import Salience
from bitwright.partitions.slots import Slots
from bitwright.protocols import PlaneSpec
from bitwright.solvers.rtn import Rtn
from bitwright.spec import to_spec

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


def make_golden() -> None:
    """Writes the artifact and the weights that were decoded from it on that day."""
    formats = (
        *(Integer(bits, 32) for bits in range(1, 9)),
        Integer(2, None, "symmetric"),
        Integer(3, 64, "midrise"),
        Binary(32),
        Binary(None, mean=False),
        Ternary(32),
        Ternary(None, "base3"),
        Mixed(Binary(32), Salience(0.2), 8, "bitmap"),
        Mixed(Binary(32), Salience(0.05), 4, "offsets"),
        Mixed(Binary(64), Slots(64), 8, "nm"),
    )
    shape = (3, 40)
    names = [f"blocks.{i}.linear" for i in range(len(formats))]
    solved = {
        name: Rtn().solve(torch.randn(shape, generator=torch.Generator().manual_seed(i)), fmt, None)
        for i, (name, fmt) in enumerate(zip(names, formats, strict=True))
    }
    stored = {f"{name}.{role}": plane for name, q in solved.items() for role, plane in q.planes.items()}
    stored["norm.weight"] = torch.arange(40) / 8
    contents = Contents(
        config={"model_type": "golden"},
        quantization=Quantization(
            formats=tuple(to_spec(fmt) for fmt in formats),
            weights=tuple(Weight(name=name, format=i, shape=shape) for i, name in enumerate(names)),
        ),
        kept={"norm.weight": PlaneSpec(torch.float32, (40,))},
        origin=Origin(bitwright="0.1.0", recipe=RecipeRow(name="golden"), fingerprint="0" * 64),
    )
    shutil.rmtree(GOLDEN, ignore_errors=True)
    (GOLDEN / "artifact").mkdir(parents=True)
    write_artifact(GOLDEN / "artifact", contents, stored.__getitem__, lambda folder: None)
    save_file({name: q.dequantize() for name, q in solved.items()}, GOLDEN / "decoded.safetensors")


@pytest.fixture(scope="module")
def golden():
    artifact = open_artifact(GOLDEN / "artifact")
    artifact.verify_hashes()
    return artifact


def test_decodes_to_the_same_weights(golden):
    decoded = load_file(GOLDEN / "decoded.safetensors")
    assert decoded.keys() == {w.name for w in golden.weights()}
    for name, dense in decoded.items():
        assert torch.equal(golden.qtensor(name).dequantize(), dense)
    assert torch.equal(golden.tensor("norm.weight"), torch.arange(40) / 8)


def test_is_packed_to_the_same_bytes(golden):
    for weight in golden.weights():
        q = golden.qtensor(weight.name)
        codes, params = q.format.unpack(q.planes, q.shape)
        planes = q.format.pack(codes, params)
        assert planes.keys() == q.planes.keys()
        assert all(torch.equal(planes[role], plane) for role, plane in q.planes.items()), weight.name


def test_is_written_to_the_same_file(golden, tmp_path):
    manifest = golden.manifest
    contents = Contents(
        config={},
        quantization=golden.quantization,
        kept={name: PlaneSpec(t.dtype, tuple(t.shape)) for name in golden.kept for t in [golden.tensor(name)]},
        origin=manifest,
    )
    rows = write_shards(tmp_path, contents.shards(), golden.tensor)
    assert rows == [row for row in manifest.files if row.name.endswith(".safetensors")]


if __name__ == "__main__":
    make_golden()
