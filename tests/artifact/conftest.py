"""A small artifact with every kind of content: several formats, a stack of experts, a tied head, kept tensors."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitwright.artifact.layout import Calibration, Manifest, Origin, Quantization, RecipeRow, Weight
from bitwright.artifact.write import Contents, write_artifact
from bitwright.formats.binary import Binary
from bitwright.formats.integer import Integer
from bitwright.formats.mixed import Mixed
from bitwright.formats.ternary import Ternary
from bitwright.protocols import PlaneSpec, QTensor
from bitwright.solvers.rtn import Rtn
from bitwright.spec import to_spec

FORMATS = (Integer(8, 32), Integer(3, 64), Mixed(Binary(64)), Ternary(None, "base3"))
WEIGHTS = {
    "model.embed_tokens": (0, (33, 40)),
    "model.layers.0.q_proj": (1, (20, 100)),
    "model.layers.0.up_proj": (2, (17, 64)),
    "model.layers.0.experts.down_proj": (3, (3, 16, 20)),
}
KEPT = {
    "model.norm.weight": torch.linspace(-1, 1, 33),
    "model.layers.0.q_proj.bias": torch.arange(20).to(torch.bfloat16),
    "model.scale": torch.tensor(2.5),
    "model.flags": torch.tensor([True, False, True]),
    "model.nothing": torch.zeros(0, 4),
}


@dataclass
class Sample:
    """What goes into an artifact, and the weights it must give back."""

    contents: Contents
    tensors: dict[str, Tensor]
    dense: dict[str, Tensor]

    def write(self, folder: Path, limit: int = 10**9) -> Manifest:
        folder.mkdir(exist_ok=True)
        return write_artifact(folder, self.contents, self.tensors.__getitem__, companions, limit)


def companions(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def solved(name: str, fmt_index: int, shape: tuple[int, ...]) -> list[QTensor]:
    seed = torch.Generator().manual_seed(sum(map(ord, name)))
    w = torch.randn(shape, generator=seed)
    return [Rtn().solve(m, FORMATS[fmt_index], None) for m in (w if len(shape) == 3 else [w])]


@pytest.fixture(scope="session")
def sample() -> Sample:
    tensors, dense = dict(KEPT), {}
    for name, (index, shape) in WEIGHTS.items():
        found = solved(name, index, shape)
        for role in found[0].planes:
            stack = torch.stack([q.planes[role] for q in found])
            tensors[f"{name}.{role}"] = stack if len(shape) == 3 else stack[0]
        dense[name] = torch.stack([q.dequantize() for q in found]).reshape(shape)
    origin = Origin(
        bitwright="0.1.0",
        recipe=RecipeRow(name="test", settings={"bits": 3}),
        calibration=Calibration(data="numbers", sha256="0" * 64, tokens=12),
        lineage={"name": "someone/something", "licence": "apache-2.0"},
        seeds={"sampling": 1},
        fingerprint="f" * 64,
    )
    quantization = Quantization(
        formats=tuple(to_spec(f) for f in FORMATS),
        weights=tuple(Weight(name=n, format=i, shape=s) for n, (i, s) in WEIGHTS.items()),
        tied=(("lm_head", "model.embed_tokens"),),
    )
    kept = {name: PlaneSpec(t.dtype, tuple(t.shape)) for name, t in KEPT.items()}
    config = {"model_type": "llama", "hidden_size": 40, "quantization_config": {"quant_method": "gguf"}}
    parts = {"model.embed_tokens": "embedding"}
    return Sample(Contents(config, quantization, kept, origin, parts), tensors, dense)


@pytest.fixture
def folder(sample: Sample, tmp_path: Path) -> Path:
    """A freshly written artifact, one shard."""
    sample.write(tmp_path / "artifact")
    return tmp_path / "artifact"
