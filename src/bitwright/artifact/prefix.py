"""The beginning of an artifact whose weights are stored in blocks, read by plain read calls, as far as a budget goes.

Every step has memory of its own that goes back to the system when its tensors are gone; nothing is mapped, so that
what a process holds is what it has read.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bitwright.artifact.folder import reading
from bitwright.artifact.header import Entry, decode, header_bytes
from bitwright.artifact.layout import INDEX, SINGLE, Weight
from bitwright.artifact.read import Artifact, check_folder, plain_file
from bitwright.artifact.steps import beginning, placed
from bitwright.errors import BadArtifact, Refused, UnknownName
from bitwright.protocols import Elastic


class PartFile:
    """One safetensors file, of which nothing but the header is read by itself; it may end before the header says."""

    mapped = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.present = os.fstat(self._file).st_size
        length = header_bytes(self._bytes(0, min(8, self.present)), self.present, str(path))
        self.entries: dict[str, Entry] = decode(self._bytes(8, length), self.present, str(path), partial=True)
        self.bytes = max((e.start + e.spec.bytes for e in self.entries.values()), default=length)
        self.tensors: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """A tensor that was loaded."""
        if name not in self.tensors:
            raise UnknownName("loaded tensor", name, self.tensors)
        return self.tensors[name]

    def load(self, names: tuple[str, ...]) -> None:
        """Read tensors that lie side by side, into memory of their own."""
        own = [self.entries[name] for name in names]
        start, stop = own[0].start, max(e.start + e.spec.bytes for e in own)
        memory = mmap.mmap(-1, max(stop - start, 1))  # pages that are given back as a whole
        self._read(memoryview(memory)[: stop - start], start)
        raw = torch.frombuffer(memory, dtype=torch.uint8)
        for name, entry in zip(names, own, strict=True):
            part = raw[entry.start - start : entry.start - start + entry.spec.bytes]
            if part.data_ptr() % entry.spec.dtype.itemsize:
                part = part.clone()
            self.tensors[name] = part.view(entry.spec.dtype).view(entry.spec.shape)

    def _bytes(self, start: int, stop: int) -> bytes:
        found = bytearray(stop - start)
        self._read(memoryview(found), start)
        return bytes(found)

    def _read(self, target: memoryview, start: int) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(self._file, [target[done:]], start + done)
            if count == 0:
                raise BadArtifact(
                    f"{self.path} ends after {start + done} bytes: copy it again, or give a smaller budget."
                )
            done += count


class Prefix:
    """The first steps of an artifact; which ones is a budget in bytes of its file, header included."""

    def __init__(self, path: Path, budget: int | None = None) -> None:
        with reading(path):
            self.artifact: Artifact = check_folder(path, _part_file)
            (file,) = self.artifact.files
            assert isinstance(file, PartFile)
            self._file = file
            self.smallest, self.steps = placed(file.entries, self.artifact.quantization, str(file.path))
            self.count = 0  # steps in memory
            count = self._within(budget)
            inner = {name for own in self.steps for name in own.step.tensors}
            self._file.load(tuple(name for name in file.entries if name not in inner))
            for weight in self.artifact.weights():
                self._check(weight)
            self._grow(count)

    @property
    def bytes(self) -> int:
        """Bytes of the file that are in memory, header included."""
        return self._end(self.count)

    @property
    def blocks(self) -> dict[str, int]:
        """How many blocks of each weight are in memory, of those that have blocks."""
        found = {w.name: 1 for w in self.artifact.weights() if isinstance(self.artifact.format(w.name), Elastic)}
        for own in self.steps[: self.count]:
            found[own.step.weight] += 1
        return found

    @property
    def part(self) -> Artifact:
        """What is in memory, as an artifact of its own; of use until the next `resize`."""
        quantization, formats = beginning(self.artifact.quantization, self.artifact.formats, self.blocks)
        return replace(self.artifact, quantization=quantization, formats=formats, manifest=None)

    def resize(self, budget: int | None) -> set[str]:
        """Read further or let go, so that `budget` bytes of the file are used (None: all); the weights that changed."""
        count, before = self._within(budget), self.count
        try:
            with reading(self._file.path):
                self._grow(count)
        except BadArtifact:
            self._drop(before)
            raise
        self._drop(count)
        return {own.step.weight for own in self.steps[min(before, count) : max(before, count)]}

    def _grow(self, count: int) -> None:
        for own in self.steps[self.count : count]:
            self._file.load(own.step.tensors)
            self.count += 1
            self._check(self.artifact.weight(own.step.weight), own.step.block)

    def _drop(self, count: int) -> None:
        for own in self.steps[count : self.count]:
            for name in own.step.tensors:
                del self._file.tensors[name]
        self.count = min(self.count, count)

    def _check(self, weight: Weight, block: int = 0) -> None:
        """Values of a weight up to the block that was just read, or of all of one without blocks."""
        fmt = self.artifact.format(weight.name)
        if isinstance(fmt, Elastic):
            fmt = fmt.prefix(block + 1)
        planes = {role: f"{weight.name}.{role}" for role in fmt.planes(weight.matrix)}
        for expert in range(weight.experts):
            own = {role: self._file.tensor(name) for role, name in planes.items()}
            if len(weight.shape) == 3:
                own = {role: plane[expert] for role, plane in own.items()}
            if flaw := fmt.flaw(own, weight.matrix):
                raise BadArtifact(f"{self._file.path}: {weight.name!r} {flaw}: copy or write the artifact again.")

    def _end(self, count: int) -> int:
        return self.steps[count - 1].stop if count else self.smallest

    def _within(self, budget: int | None) -> int:
        """Steps that fit; `Refused` tells the sizes there are, `BadArtifact` that the file ends before."""
        whole, where = self._file.bytes, self._file.path
        wanted = whole if budget is None else budget
        if wanted < self.smallest:
            raise Refused(
                f"a budget of {_mb(wanted)} is too small for {where}: its embedding and the first block of each weight "
                f"take {_mb(self.smallest, up=True)}; give that or more."
            )
        if wanted > whole:
            raise Refused(
                f"a budget of {_mb(wanted)} is more than {where} has: give at most {_mb(whole)}, or no budget for all."
            )
        count = sum(own.stop <= wanted for own in self.steps)
        if self._end(count) > self._file.present:
            raise BadArtifact(
                f"{where} ends after {_mb(self._file.present)} of {_mb(whole)}: copy it again, or give a budget of at "
                "most what is there."
            )
        return count


def _part_file(folder: Path) -> dict[str, PartFile]:
    if (folder / INDEX).exists():
        raise BadArtifact(
            f"{folder} has its weights in several files, so no part of it is a model: leave the budget out."
        )
    return {SINGLE: PartFile(plain_file(folder, SINGLE))}


def _mb(count: int, up: bool = False) -> str:
    """Bytes as megabytes, rounded such that what is told is enough (`up`) or there."""
    return f"{(math.ceil if up else math.floor)(count / 1e4) / 100:.2f} MB"
