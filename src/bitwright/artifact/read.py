"""Opens artifacts. Nothing of a folder is used before all of it that can be checked cheaply was checked.

Accepts what `write` writes and what transformers' `save_pretrained` makes of it (another order, no manifest).
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from torch import Tensor

from bitwright.artifact.folder import reading
from bitwright.artifact.header import DTYPE_NAMES, Entry, decode, header_bytes
from bitwright.artifact.layout import (
    CONFIG,
    GENERATION,
    INDEX,
    JSON_LIMIT,
    MANIFEST,
    METHOD,
    SINGLE,
    Index,
    Manifest,
    Quantization,
    Weight,
    parse,
    parse_json,
)
from bitwright.artifact.plan import formats, matrix_planes, plan_rows, planes
from bitwright.errors import BadArtifact, BadField, UnknownName
from bitwright.protocols import Format, Planes, PlaneSpec, QTensor

SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")


class StoredFile(Protocol):
    """A safetensors file: bytes that its header describes, where its tensors lie, and those that can be had."""

    bytes: int
    entries: dict[str, Entry]

    @property
    def mapped(self) -> Tensor | None:
        """Uint8, all of the file, where tensors are views of a mapped one."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One of the tensors."""
        ...


class TensorFile:
    """One safetensors file, checked and mapped. Its tensors are private: what is written to them stays in memory."""

    def __init__(self, path: Path) -> None:
        with reading(path), path.open("rb") as file:
            self.bytes = path.stat().st_size
            length = header_bytes(file.read(8), self.bytes, str(path))
            self.entries: dict[str, Entry] = decode(file.read(length - 8), self.bytes, str(path))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped.madvise(mmap.MADV_WILLNEED)  # in one go, not page by page as scales between the codes are checked
        self.mapped = torch.frombuffer(mapped, dtype=torch.uint8)

    def tensor(self, name: str) -> Tensor:
        """A view of the file, or a copy where the tensor starts between two items."""
        entry = self.entries[name]
        raw = self.mapped[entry.start : entry.start + entry.spec.bytes]
        if entry.start % entry.spec.dtype.itemsize:
            raw = raw.clone()
        return raw.view(entry.spec.dtype).view(entry.spec.shape)


@dataclass(frozen=True)
class Artifact:
    """An opened folder. `kept` names the tensors that are not quantized; `manifest` is None after `save_pretrained`."""

    path: Path
    config: Mapping[str, Any]
    quantization: Quantization
    formats: tuple[Format, ...]
    manifest: Manifest | None
    kept: tuple[str, ...]
    files: tuple[StoredFile, ...]

    def weights(self) -> tuple[Weight, ...]:
        """The quantized weights in order of use."""
        return self.quantization.weights

    @cached_property
    def _by_name(self) -> dict[str, Weight]:
        return {w.name: w for w in self.quantization.weights}

    def weight(self, name: str) -> Weight:
        """The quantized weight of this module path."""
        if name not in self._by_name:
            raise UnknownName("quantized weight", name, self._by_name)
        return self._by_name[name]

    def format(self, name: str) -> Format:
        """The format of a quantized weight."""
        return self.formats[self.weight(name).format]

    def tensor(self, name: str) -> Tensor:
        """A stored tensor by full name, in read-only memory: clone before writing."""
        for file in self.files:
            if name in file.entries:
                return file.tensor(name)
        raise UnknownName("tensor", name, (n for file in self.files for n in file.entries))

    def planes(self, name: str) -> Planes:
        """Stored planes of a weight by role; those of stacked experts lead with E."""
        fmt, weight = self.format(name), self.weight(name)
        return {role: self.tensor(f"{name}.{role}") for role in matrix_planes(fmt, weight.matrix)}

    def qtensor(self, name: str, expert: int = 0) -> QTensor:
        """A weight, or one expert of a stack."""
        weight, stored = self.weight(name), self.planes(name)
        if len(weight.shape) == 3:
            stored = {role: plane[expert] for role, plane in stored.items()}
        return QTensor(self.formats[weight.format], weight.matrix, stored)

    @property
    def generation_config(self) -> Mapping[str, Any] | None:
        """How the model's makers would have it generate, if they say."""
        if not (self.path / GENERATION).exists():
            return None
        found = _json(self.path, GENERATION)
        if not isinstance(found, dict):
            raise BadArtifact(f"{self.path / GENERATION} is no JSON object: copy the artifact again.")
        return found

    def file_bytes(self) -> int:
        """Bytes of all safetensors files, headers included."""
        return sum(file.bytes for file in self.files)

    def verify_hashes(self) -> None:
        """Reads everything and compares with the manifest's SHA-256s; `BadArtifact` names the altered file."""
        if self.manifest is None:
            raise BadArtifact(f"{self.path} has no {MANIFEST} and so no hashes to compare with.")
        for row in self.manifest.files:
            if _sha256(plain_file(self.path, row.name)) != row.sha256:
                raise BadArtifact(f"{self.path / row.name} was altered: copy the artifact again.")


def load_block(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of one file of `save_block`, in read-only memory; `BadArtifact` if it is not the one with this hash."""
    file = TensorFile(path)
    if sha256 is not None and _sha256(path) != sha256:
        raise BadArtifact(f"{path} was altered: remove it to have it made again.")
    return {name: file.tensor(name) for name in file.entries}


def _sha256(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_artifact(path: Path) -> Artifact:
    """Checks a folder and maps its tensors; `BadArtifact` says in one sentence what is wrong and what to do."""
    with reading(path):
        artifact = check_folder(path, _files)
        _check_values(artifact)
    return artifact


def check_folder(path: Path, files_of: Callable[[Path], Mapping[str, StoredFile]]) -> Artifact:
    """Everything that can be checked without the values of tensors; `files_of` opens the weight files by name."""
    if not path.is_dir():
        raise BadArtifact(f"{path} is no folder: give the folder that bitwright wrote.")
    config = _json(path, CONFIG)
    raw = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(raw, dict) or raw.get("quant_method") != METHOD:
        raise BadArtifact(f"{path / CONFIG} describes no bitwright model: give the folder that bitwright wrote.")
    quantization = parse(Quantization, raw, f"quantization_config of {path / CONFIG}")
    manifest = None
    if (path / MANIFEST).exists():
        manifest = parse(Manifest, _json(path, MANIFEST), str(path / MANIFEST))
    files = files_of(path)
    known, kept = _matched(path, quantization, _stored(files))
    artifact = Artifact(path, config, quantization, known, manifest, tuple(kept), tuple(files.values()))
    if manifest is not None:
        _check_manifest(artifact, manifest, files)
    return artifact


def plain_file(folder: Path, name: str) -> Path:
    """A regular file of the folder; links may only lead inside it, or to the blobs of a hub cache."""
    path = folder / name
    if not path.is_file():
        raise BadArtifact(f"{path} is missing or no file: copy the artifact again.")
    target, home = path.resolve(), folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(place) for place in allowed):
        raise BadArtifact(f"{path} is a link that leaves the folder: replace it with the file itself.")
    return path


def _json(folder: Path, name: str) -> Any:
    path = plain_file(folder, name)
    if path.stat().st_size > JSON_LIMIT:
        raise BadArtifact(f"{path} is larger than the {JSON_LIMIT} bytes allowed: do not use it.")
    return parse_json(path.read_bytes(), str(path))


def _files(folder: Path) -> dict[str, TensorFile]:
    """The safetensors files by name, exactly those that belong together."""
    present = {p.name for p in folder.glob("model*.safetensors")}
    names = {SINGLE}
    where = str(folder / INDEX)
    index = None
    if (folder / INDEX).exists():
        index = parse(Index, _json(folder, INDEX), where)
        names = set(index.weight_map.values())
        if bad := [n for n in names if not SHARD_NAME.fullmatch(n)]:
            raise BadArtifact(f"{where} names {min(bad)!r}, which is no plain safetensors file name: do not use it.")
    if stray := present - names:
        raise BadArtifact(f"{folder / min(stray)} belongs to no index: remove it if it is left over.")
    files = {name: TensorFile(plain_file(folder, name)) for name in sorted(names)}
    if index is not None and index.weight_map != {t: name for name, file in files.items() for t in file.entries}:
        raise BadArtifact(f"{where} and the files disagree on which tensor is where: copy the artifact again.")
    return files


def _stored(files: Mapping[str, StoredFile]) -> dict[str, PlaneSpec]:
    """All tensors by name; none may be there twice."""
    found: dict[str, PlaneSpec] = {}
    for name, file in files.items():
        if twice := found.keys() & file.entries.keys():
            raise BadArtifact(f"{name} holds {min(twice)!r}, which another file holds too: write the artifact again.")
        found |= {tensor: entry.spec for tensor, entry in file.entries.items()}
    return found


def _matched(
    folder: Path, quantization: Quantization, stored: Mapping[str, PlaneSpec]
) -> tuple[tuple[Format, ...], list[str]]:
    """The formats, and the names of tensors that are not planes; every plane must be there and as it should be."""
    where = f"quantization_config of {folder / CONFIG}"
    expected: set[str] = set()
    try:
        known = formats(quantization)
        for w in quantization.weights:
            own = planes(w, known[w.format])
            _check_planes(folder, own, stored)
            expected |= own.keys()
    except RecursionError:
        raise BadArtifact(f"{where} nests formats without end: do not use it.") from None
    except (UnknownName, BadField) as error:
        raise BadArtifact(f"{where} cannot be used: {error}") from None
    kept = [name for name in stored if name not in expected]
    modules = {w.name for w in quantization.weights}
    for name in kept:
        module, _, role = name.rpartition(".")
        if module in modules and role != "bias":
            raise BadArtifact(f"{folder}: {name!r} is no plane of its weight's format: write the artifact again.")
    for tied, to in quantization.tied:
        if f"{tied}.weight" in stored or not (to in modules or f"{to}.weight" in stored):
            raise BadArtifact(f"{where} ties {tied!r} to {to!r}, which the tensors contradict: write it again.")
    return known, kept


def _check_planes(folder: Path, own: Mapping[str, PlaneSpec], stored: Mapping[str, PlaneSpec]) -> None:
    for name, spec in own.items():
        if name not in stored:
            raise BadArtifact(f"{folder}: the plane {name!r} is missing: copy the artifact again.")
        if stored[name] != spec:
            told = f"is {_told(stored[name])}, but its format needs {_told(spec)}"
            raise BadArtifact(f"{folder}: {name!r} {told}: write the artifact again.")


def _check_values(artifact: Artifact) -> None:
    """Codes that say where others lie must not lead kernels out of the planes."""
    for weight in artifact.weights():
        for expert in range(weight.experts):
            q = artifact.qtensor(weight.name, expert)
            if flaw := q.format.flaw(q.planes, q.shape):
                raise BadArtifact(f"{artifact.path}: {weight.name!r} {flaw}: copy or write the artifact again.")


def _told(spec: PlaneSpec) -> str:
    return f"{DTYPE_NAMES[spec.dtype]} {list(spec.shape)}"


def _check_manifest(artifact: Artifact, manifest: Manifest, files: Mapping[str, StoredFile]) -> None:
    """The manifest must tell of exactly these weights, tensors and files."""
    where = artifact.path / MANIFEST
    parts = {row.name: row.part for row in manifest.plan}
    if manifest.plan != plan_rows(artifact.quantization, parts):
        raise BadArtifact(f"{where} plans other weights than {CONFIG} lists: copy the artifact again.")
    kept = {row.name: (row.dtype, row.shape) for row in manifest.kept}
    specs = _stored(files)
    if kept != {name: (DTYPE_NAMES[specs[name].dtype], specs[name].shape) for name in artifact.kept}:
        raise BadArtifact(f"{where} lists other unquantized tensors than the files hold: copy the artifact again.")
    sizes = {row.name: row.bytes for row in manifest.files if row.name.endswith(".safetensors")}
    if sizes != {name: file.bytes for name, file in files.items()} or manifest.totals.file_bytes != sum(sizes.values()):
        raise BadArtifact(
            f"{where} tells of other weight files than are there: copy the artifact again, or remove {MANIFEST} "
            "if transformers saved the model into its own folder."
        )
    _check_names(where, [row.name for row in manifest.files])


def _check_names(where: Path, names: Sequence[str]) -> None:
    """Names that `verify_hashes` may follow: relative, inside the folder."""
    for name in names:
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise BadArtifact(f"{where} names the file {name!r}, which is outside the folder: do not use it.")
