"""What is inside an artifact, in words and numbers: what `bitwright info` says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from bitwright.artifact.layout import Manifest, Weight, expert_of
from bitwright.artifact.plan import block_bits, plan_rows
from bitwright.artifact.prefix import Prefix
from bitwright.artifact.read import Artifact
from bitwright.artifact.steps import beginning, placed
from bitwright.bits import Bits, total
from bitwright.protocols import Format
from bitwright.runtime.linear import QLinear

EXPERTS = "torch: the experts in use are decoded to float, one at a time"
LOOK_UP = "torch: rows are decoded when they are looked up"


def describe(artifact: Artifact) -> dict[str, Any]:
    """Sizes, bits by kind, origin and the code that runs each kind of weight, ready for JSON."""
    manifest = artifact.manifest
    parts = {} if manifest is None else {row.name: row.part for row in manifest.plan}
    rows = plan_rows(artifact.quantization, parts)
    weights = [row.model_dump(mode="json") for row in rows]
    tables = [name for name, part in parts.items() if part == "embedding"]
    return {
        "path": str(artifact.path),
        "architecture": artifact.config.get("model_type"),
        "file_bytes": artifact.file_bytes(),
        "stored_bits_per_weight": None if manifest is None else manifest.totals.stored_bits_per_weight,
        "bytes": _bytes_by_part(artifact, rows),
        "bits": {part: _bits(row.bits for row in rows if row.part == part) for part in sorted({r.part for r in rows})},
        "formats": [_format_row(artifact, index, tables) for index in range(len(artifact.formats))],
        "weights": weights,
        "kept": list(artifact.kept),
        "tied": [list(pair) for pair in artifact.quantization.tied],
        "beginnings": beginnings(artifact),
        **_origin(manifest),
    }


def loaded_bits(prefix: Prefix) -> float:
    """Stored bits a weight of the block linears, of the blocks that are in memory."""
    return _bits_of(prefix.artifact, prefix.blocks)


def beginnings(artifact: Artifact) -> dict[str, Any] | None:
    """What parts of the weight file can be used, and how good they were found; None if only the whole can."""
    manifest = artifact.manifest
    if manifest is None or manifest.elastic is None:
        return None
    smallest, steps = placed(artifact.files[0].entries, artifact.quantization, str(artifact.path))
    points, reached = [], dict.fromkeys((own.step.weight for own in steps), 1)
    left = list(steps)
    for point in manifest.elastic.curve:
        while left and left[0].stop <= point.bytes:
            reached[left.pop(0).step.weight] += 1
        points.append({"bytes": point.bytes, "stored_bits_per_weight": _bits_of(artifact, reached), "kl": point.kl})
    return {"smallest_bytes": smallest, "steps": len(steps), "tokens": manifest.elastic.tokens, "curve": points}


def _bits_of(artifact: Artifact, blocks: Mapping[str, int]) -> float:
    """Stored bits a weight of the block linears with so many blocks of each weight."""
    parts = {} if artifact.manifest is None else {row.name: row.part for row in artifact.manifest.plan}
    quantization, _ = beginning(artifact.quantization, artifact.formats, blocks)
    return block_bits(plan_rows(quantization, parts))


def code_path(fmt: Format, weight: Weight, table: bool) -> str:
    """Which code multiplies by this weight with int8 activations, and why."""
    if len(weight.shape) == 3 or expert_of(weight.name):
        return EXPERTS
    with torch.device("meta"):
        layer = QLinear(fmt, weight.matrix)
    return f"{LOOK_UP}; as output head {layer.path}" if table else layer.path


def grouped(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plan rows that are alike but for the number of their block, as one row with a `count`."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        name = re.sub(r"\.\d+\.", ".*.", re.sub(r"\.expert\d+$", ".expert*", row["name"]))
        key = (name, tuple(row["shape"]), row["format"], row["bytes"])
        found.setdefault(key, {**row, "name": name, "count": 0})["count"] += 1
    return list(found.values())


def _format_row(artifact: Artifact, index: int, tables: list[str]) -> dict[str, Any]:
    own = [w for w in artifact.weights() if w.format == index]
    paths = {code_path(artifact.formats[index], w, w.name in tables) for w in own}
    return {"spec": artifact.quantization.formats[index], "weights": len(own), "paths": sorted(paths)}


def _bytes_by_part(artifact: Artifact, rows: Iterable[Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.part] = sizes.get(row.part, 0) + row.bytes
    sizes["kept"] = sum(
        file.entries[n].spec.bytes for file in artifact.files for n in file.entries if n in artifact.kept
    )
    sizes["header"] = artifact.file_bytes() - sum(sizes.values())
    return sizes


def _bits(named: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return total(Bits(**bits) for bits in named).named()


def _origin(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return dict.fromkeys(("bitwright", "recipe", "calibration", "lineage", "seeds", "fingerprint", "verification"))
    keys = {"bitwright", "recipe", "calibration", "lineage", "seeds", "fingerprint", "verification"}
    return manifest.model_dump(mode="json", include=keys)
