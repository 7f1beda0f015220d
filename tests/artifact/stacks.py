"""A small artifact whose weights are stacks of blocks, in an order that is not level by level."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitwright.artifact.layout import ElasticRow, Manifest, Origin, Point, Quantization, RecipeRow, Weight
from bitwright.artifact.steps import Step, levels
from bitwright.artifact.write import Contents, write_artifact, write_manifest
from bitwright.formats.integer import Integer
from bitwright.formats.stack import Stack
from bitwright.protocols import Planes, PlaneSpec
from bitwright.solvers.rtn import Rtn
from bitwright.solvers.successive import Successive
from bitwright.spec import to_spec

FORMATS = (Integer(4, 32), Stack(4), Stack(3, rank=2))
SHAPES = {"embed": (0, (20, 40)), "a": (1, (48, 64)), "b": (1, (17, 33)), "c": (2, (32, 96))}
ORDER = ("c1", "a1", "a2", "b1", "c2", "a3", "b2", "b3")  # weight and block


def tensors() -> dict[str, Tensor]:
    found = {"norm": torch.arange(40) / 8}
    for i, (name, (fmt, shape)) in enumerate(SHAPES.items()):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        planes: Planes = Successive(Rtn()).solve(w, FORMATS[fmt], None).planes
        found |= {f"{name}.{role}": plane for role, plane in planes.items()}
    return found


def contents(order: tuple[str, ...] = ORDER) -> Contents:
    quantization = Quantization(
        formats=tuple(to_spec(fmt) for fmt in FORMATS),
        weights=tuple(Weight(name=name, format=fmt, shape=shape) for name, (fmt, shape) in SHAPES.items()),
    )
    steps: dict[str, Step] = {f"{step.weight}{step.block}": step for step in levels(quantization)}
    return Contents(
        config={"model_type": "golden"},
        quantization=quantization,
        kept={"norm": PlaneSpec(torch.float32, (40,))},
        origin=Origin(bitwright="0.1.0", recipe=RecipeRow(name="golden"), fingerprint="0" * 64),
        parts={"embed": "embedding"},
        steps=tuple(steps[name] for name in order),
    )


def write(folder: Path, order: tuple[str, ...] = ORDER) -> Manifest:
    folder.mkdir(parents=True)
    stored = tensors()
    manifest = write_artifact(folder, contents(order), stored.__getitem__, lambda place: None)
    size = manifest.totals.file_bytes
    curve = (Point(bytes=size * 3 // 4, kl=0.5), Point(bytes=size, kl=0.125))
    manifest = manifest.model_copy(update={"elastic": ElasticRow(tokens=64, curve=curve)})
    write_manifest(folder, manifest)
    return manifest
