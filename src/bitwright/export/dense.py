"""A plain float folder from an artifact: any tool that reads Hugging Face models reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from bitwright.artifact.folder import draft, lock
from bitwright.artifact.layout import CARD, CONFIG, INDEX, MANIFEST, expert_name, expert_of, json_text
from bitwright.artifact.read import Artifact, open_artifact
from bitwright.artifact.write import plan_shards, write_shards, write_text
from bitwright.errors import Refused
from bitwright.protocols import Adaptive, PlaneSpec


def export_dense(path: Path, out: Path) -> int:
    """Write the decoded weights, float32, with config and tokenizer to the new folder `out`; returns its bytes."""
    artifact = open_artifact(path)
    if any(isinstance(fmt, Adaptive) for fmt in artifact.formats):
        raise Refused(f"{path} has scales that every token mixes: no float matrix does the same.")
    specs: dict[str, PlaneSpec] = {}
    for weight in artifact.weights():
        part = expert_of(weight.name)
        if part is not None:
            count = 1 + max(part[1], specs[part[0]].shape[0] - 1 if part[0] in specs else 0)
            specs[part[0]] = PlaneSpec(torch.float32, (count, *weight.shape))
            continue
        name = weight.name if len(weight.shape) == 3 else f"{weight.name}.weight"
        specs[name] = PlaneSpec(torch.float32, weight.shape)
    for name in artifact.kept:
        stored = artifact.tensor(name)
        specs[name] = PlaneSpec(stored.dtype, tuple(stored.shape))
    with lock(out), draft(out) as folder:
        rows = write_shards(folder, plan_shards(specs), lambda name: _dense(artifact, name))
        config = {k: v for k, v in artifact.config.items() if k != "quantization_config"} | {"dtype": "float32"}
        write_text(folder / CONFIG, json_text(config))
        for file in sorted(path.iterdir()):
            if file.is_file() and file.suffix != ".safetensors" and file.name not in (CONFIG, MANIFEST, CARD, INDEX):
                shutil.copyfile(file, folder / file.name)
    return sum(row.bytes for row in rows)


def _dense(artifact: Artifact, name: str) -> Tensor:
    if name in artifact.kept:
        return artifact.tensor(name)
    quantized = {w.name: w for w in artifact.weights()}
    if expert_name(name, 0) in quantized:
        experts = sorted(part[1] for w in quantized if (part := expert_of(w)) is not None and part[0] == name)
        return torch.stack([artifact.qtensor(expert_name(name, e)).dequantize() for e in experts])
    weight = quantized.get(name) or quantized[name.removesuffix(".weight")]
    if len(weight.shape) == 3:
        return torch.stack([artifact.qtensor(weight.name, e).dequantize() for e in range(weight.shape[0])])
    return artifact.qtensor(weight.name).dequantize()
