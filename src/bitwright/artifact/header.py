"""The header of a safetensors file, both ways.

Format: uint64 little-endian n, n bytes of JSON, then the tensors without holes
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from bitwright.artifact.layout import JSON_LIMIT, parse_json
from bitwright.errors import BadArtifact, BadInput
from bitwright.protocols import PlaneSpec

ALIGNMENT = 64  # bytes: a cache line and the widest vector register
MAX_DIMS = 8
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: type, shape and the byte it starts at, counted from the start of the file."""

    spec: PlaneSpec
    start: int


def encode(tensors: Mapping[str, PlaneSpec]) -> bytes:
    """Length and header of tensors that follow each other in this order, padded with spaces to 64 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for this key
    at = 0
    for name, spec in tensors.items():
        end = at + spec.bytes
        if spec.dtype not in DTYPE_NAMES:
            raise BadInput(f"{name} is of type {spec.dtype}, which cannot be stored: use one of {', '.join(DTYPES)}.")
        table[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def header_bytes(first: bytes, size: int, where: str) -> int:
    """Length of header and its length field, from the first 8 bytes of a file of `size` bytes."""
    length = int.from_bytes(first, "little")
    if len(first) < 8 or 8 + length > size:
        raise BadArtifact(f"{where} is truncated inside its header: copy it again.")
    if length > JSON_LIMIT:
        raise BadArtifact(f"{where} has a header of {length} bytes, more than the {JSON_LIMIT} allowed: do not use it.")
    return 8 + length


def decode(text: bytes, size: int, where: str, partial: bool = False) -> dict[str, Entry]:
    """The tensors of a file of `size` bytes with this header, in file order.

    They must fill the file exactly, or more than it if it may be `partial`: `BadArtifact` on gaps, overlaps, unknown
    types and impossible shapes.
    """
    table = parse_json(text, f"the header of {where}")
    if not isinstance(table, dict):
        raise BadArtifact(f"the header of {where} is no JSON object: copy or write the artifact again.")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadArtifact(f"the header of {where} has metadata that are no strings: write the artifact again.")
    rows = sorted((_row(name, row, where) for name, row in table.items()), key=lambda row: row[1:3])
    base = at = 8 + len(text)
    entries = {}
    for name, start, end, spec in rows:
        if base + start != at:
            kind = "overlaps the tensor before it" if base + start < at else "leaves a gap before it"
            raise BadArtifact(f"{where}: tensor {name!r} {kind}: do not use this file.")
        entries[name] = Entry(spec, at)
        at = base + end
    if at != size and not (partial and size < at):
        raise BadArtifact(
            f"{where} has {size} bytes where its header describes {at}: "
            f"{'copy it again, it is truncated' if size < at else 'do not use it, something was appended'}."
        )
    return entries


def _row(name: str, row: Any, where: str) -> tuple[str, int, int, PlaneSpec]:
    """Name, begin and end after the header, and type of one entry of a header."""
    bad = f"{where}: tensor {name!r}"
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise BadArtifact(f"{bad} needs dtype, shape and data_offsets and nothing else: write the artifact again.")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadArtifact(f"{bad} is of the unknown type {dtype!r}: known are {', '.join(DTYPES)}.")
    if not _naturals(shape) or len(shape) > MAX_DIMS or prod(max(n, 1) for n in shape) >= 1 << 60:
        raise BadArtifact(f"{bad} has the impossible shape {str(shape)[:80]}: do not use this file.")
    spec = PlaneSpec(DTYPES[dtype], tuple(shape))
    if not _naturals(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != spec.bytes:
        raise BadArtifact(f"{bad} has offsets {str(offsets)[:80]} that do not fit its shape and type: do not use it.")
    return name, offsets[0], offsets[1], spec


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
