"""Writes artifacts: every offset and every byte count is fixed before the first tensor exists.

Inside a shard the tensors whose size is a multiple of 64 bytes come first, in order of use, then those of 32, 16, ...
So nothing is padded, every plane of codes starts on a 64-byte offset and every tensor on a multiple of its item.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.artifact.card import model_card
from bitwright.artifact.folder import beside, sync, writing
from bitwright.artifact.header import ALIGNMENT, encode
from bitwright.artifact.layout import (
    CARD,
    CONFIG,
    INDEX,
    MANIFEST,
    SINGLE,
    FileRow,
    Manifest,
    Origin,
    Quantization,
    json_text,
)
from bitwright.artifact.plan import Part, kept_rows, plan_rows, tensors, totals
from bitwright.artifact.steps import Step
from bitwright.errors import WorkFailed
from bitwright.protocols import PlaneSpec

SHARD_LIMIT = 2_000_000_000  # bytes of tensors; one larger tensor gets a shard of its own


@dataclass(frozen=True)
class Shard:
    """One planned file: its name and its tensors in file order."""

    name: str
    tensors: Mapping[str, PlaneSpec]

    @property
    def bytes(self) -> int:
        """Size of the file, header included."""
        return len(encode(self.tensors)) + sum(s.bytes for s in self.tensors.values())


@dataclass(frozen=True)
class Contents:
    """All that decides an artifact, except the codes. `config` is the model's own; `kept` are the tensors that
    stay as the source has them; `parts` says which weights are no block linears; `steps` are blocks of weights that
    follow all else in this order, in one file."""

    config: Mapping[str, Any]
    quantization: Quantization
    kept: Mapping[str, PlaneSpec]
    origin: Origin
    parts: Mapping[str, Part] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    def shards(self, limit: int = SHARD_LIMIT) -> list[Shard]:
        """The planned files."""
        specs = tensors(self.quantization, self.kept)
        if not self.steps:
            return plan_shards(specs, limit)
        later = {name for step in self.steps for name in step.tensors}
        runs = [[name for name in specs if name not in later], *(step.tensors for step in self.steps)]
        ordered = [_aligned({name: specs[name] for name in run}) for run in runs]
        return [Shard(SINGLE, {name: spec for run in ordered for name, spec in run.items()})]


def plan_shards(specs: Mapping[str, PlaneSpec], limit: int = SHARD_LIMIT) -> list[Shard]:
    """Files for tensors in order of use, each of at most `limit` bytes of tensors where that can be."""
    runs: list[dict[str, PlaneSpec]] = [{}]
    room = limit
    for name, spec in specs.items():
        if spec.bytes > room and runs[-1]:
            runs.append({})
            room = limit
        runs[-1][name] = spec
        room -= spec.bytes
    if len(runs) == 1:
        return [Shard(SINGLE, _aligned(runs[0]))]
    return [Shard(f"model-{i:05}-of-{len(runs):05}.safetensors", _aligned(run)) for i, run in enumerate(runs, 1)]


def _aligned(run: Mapping[str, PlaneSpec]) -> dict[str, PlaneSpec]:
    """Sizes that keep the next tensor aligned come first; order of use within each class."""

    def coarseness(size: int) -> int:
        return min(size & -size or ALIGNMENT, ALIGNMENT)

    return dict(sorted(run.items(), key=lambda item: -coarseness(item[1].bytes)))


def predicted_bytes(shards: Sequence[Shard]) -> int:
    """Bytes of all safetensors files, headers included."""
    return sum(shard.bytes for shard in shards)


def write_shards(folder: Path, shards: Sequence[Shard], read: Callable[[str], Tensor]) -> list[FileRow]:
    """Streams every tensor that `read(name)` gives, one at a time, and the index if there are several files.

    `WorkFailed` if a tensor or a file is not as planned, `BadInput` if the disk refuses.
    """
    rows = [_write_shard(folder / shard.name, shard, read) for shard in shards]
    if len(shards) > 1:
        size = sum(spec.bytes for shard in shards for spec in shard.tensors.values())
        names = {name: shard.name for shard in shards for name in shard.tensors}
        write_text(folder / INDEX, json_text({"metadata": {"total_size": size}, "weight_map": names}))
    return rows


def _write_shard(path: Path, shard: Shard, read: Callable[[str], Tensor]) -> FileRow:
    digest = hashlib.sha256()
    with writing(path), path.open("wb") as file:
        for piece in _pieces(shard, read):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if size != shard.bytes:
        raise WorkFailed(f"{path} has {size} bytes where {shard.bytes} were predicted: please report this.")
    return FileRow(name=path.name, bytes=size, sha256=digest.hexdigest())


def _pieces(shard: Shard, read: Callable[[str], Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a file: header, then tensors."""
    yield encode(shard.tensors)
    for name, spec in shard.tensors.items():
        tensor = read(name)
        if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise WorkFailed(
                f"{name} was planned as {spec.dtype} {list(spec.shape)} and came as {tensor.dtype} "
                f"{list(tensor.shape)}: please report this."
            )
        if tensor.numel():
            yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_text(path: Path, text: str) -> None:
    """A small text file, flushed to the disk."""
    with writing(path):
        path.write_text(text, encoding="utf-8")
        sync(path)


def write_artifact(
    folder: Path,
    contents: Contents,
    read: Callable[[str], Tensor],
    companions: Callable[[Path], None],
    limit: int = SHARD_LIMIT,
) -> Manifest:
    """Fills a folder, usually that of `draft`; `companions` puts tokenizer, licence and the like into it.

    Equal contents and codes give equal bytes. Files of `companions` come before ours and cannot replace them.
    """
    rows = plan_rows(contents.quantization, contents.parts)
    with writing(folder):
        companions(folder)
    shards = contents.shards(limit)
    files = write_shards(folder, shards, read)
    config = dict(contents.config) | {"quantization_config": contents.quantization.model_dump(mode="json")}
    write_text(folder / CONFIG, json_text(config))
    manifest = Manifest(
        **dict(contents.origin),
        plan=rows,
        kept=kept_rows(contents.kept),
        totals=totals(rows, contents.kept, predicted_bytes(shards)),
        files=tuple(files + _other_files(folder, files)),
    )
    write_text(folder / CARD, model_card(manifest, contents.config))
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes bitwright.json; again once `verification` is known."""
    write_text(folder / MANIFEST, json_text(manifest.model_dump(mode="json")))


def _other_files(folder: Path, known: Sequence[FileRow]) -> list[FileRow]:
    """Rows of the files that are no shards. The card and the manifest may be edited and are left out."""
    skip = {row.name for row in known} | {CARD, MANIFEST}
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    found = []
    for name in names:
        if name not in skip:
            data = (folder / name).read_bytes()
            found.append(FileRow(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return found


def save_block(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Tensors as one safetensors file that appears whole or not at all; returns its SHA-256."""
    specs = {name: PlaneSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    partial = beside(path, ".partial")
    try:
        row = _write_shard(partial, Shard(path.name, _aligned(specs)), tensors.__getitem__)
        with writing(path):
            partial.replace(path)
            sync(partial.parent)
    finally:
        partial.unlink(missing_ok=True)
    return row.sha256
