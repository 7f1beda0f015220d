"""Tensors of a safetensors file as views of the mapped file."""

from __future__ import annotations

import json
import math
import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import BadInput

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: bytes [start, end) of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class MappedFile:
    """A safetensors file: header checked against the file size at once, data mapped shared and read-only.

    Such pages belong to the page cache, not to the private memory of the process. `BadInput` if truncated or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries, self._data = _header(path)
        self._bytes: Tensor | None = None

    def tensor(self, name: str) -> Tensor:
        """A view of the file where its offset is aligned, else a copy. Never write into it."""
        entry = self.entries[name]
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        raw = self._mapped()[self._data + entry.start : self._data + entry.end]
        if raw.storage_offset() % entry.dtype.itemsize:
            raw = raw.clone()
        return raw.view(entry.dtype).view(entry.shape)

    def _mapped(self) -> Tensor:
        if self._bytes is None:
            with self.path.open("rb") as file, warnings.catch_warnings():
                # torch has no read-only tensors and says so
                warnings.simplefilter("ignore", UserWarning)
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._bytes = torch.frombuffer(view, dtype=torch.uint8)
        return self._bytes


def _header(path: Path) -> tuple[dict[str, Entry], int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise BadInput(f"{path} is truncated: its header wants {length + 8} bytes, the file has {size}.")
            text = file.read(length)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from None
    try:
        fields = json.loads(text)
        entries = {k: _entry(v) for k, v in fields.items() if k != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} has no valid safetensors header: {error}.") from None
    end = 8 + length + max((e.end for e in entries.values()), default=0)
    if end > size:
        raise BadInput(f"{path} is truncated: its tensors end at byte {end}, the file has {size}; fetch it again.")
    return entries, 8 + length


def _entry(field: dict[str, Any]) -> Entry:
    start, end = field["data_offsets"]
    if field["dtype"] not in DTYPES:
        raise ValueError(f"tensors of type {field['dtype']} are not float weights")
    dtype, shape = DTYPES[field["dtype"]], tuple(field["shape"])
    if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"offsets {start} to {end} do not fit a {field['dtype']} tensor of shape {shape}")
    return Entry(dtype, shape, start, end)
