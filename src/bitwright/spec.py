"""A part as plain data and back: {"kind": ..., fields}. Strict in both directions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bitwright.errors import BadField, UnknownName
from bitwright.registry import part

Spec = dict[str, Any]


def to_spec(value: Any) -> Any:
    """A frozen part as JSON-ready data; nested parts and tuples included."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": getattr(type(value), "kind"), **{f.name: to_spec(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple | list):
        return [to_spec(v) for v in value]
    return value


def from_spec(spec: Any) -> Any:
    """The part that `to_spec` described. Unknown kinds, unknown fields and wrong types are errors."""
    if isinstance(spec, list):
        return tuple(from_spec(v) for v in spec)
    if not isinstance(spec, dict):
        return spec
    kind = spec.get("kind")
    if not isinstance(kind, str):
        raise BadField("spec", "kind", kind, "give the name of a part")
    cls = part(kind)
    known = [f.name for f in fields(cls)]
    for key in spec:
        if key != "kind" and key not in known:
            raise UnknownName(f"field of {kind}", key, known)
    values = {k: from_spec(v) for k, v in spec.items() if k != "kind"}
    try:
        TypeAdapter(cls, config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"]) or "fields"
        raise BadField(cls.__name__, field, first.get("input"), first["msg"].lower()) from None
    return cls(**values)


def fingerprint(value: Any) -> str:
    """SHA-256 of data in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
