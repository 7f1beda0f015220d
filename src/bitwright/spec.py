"""A part as plain data and back: {"kind": ..., fields}. Strict in both directions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bitwright.errors import BadField, UnknownName
from bitwright.registry import part

Spec = dict[str, Any]
T = TypeVar("T")
STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)


def to_spec(value: Any) -> Any:
    """A frozen part as JSON-ready data; nested parts and tuples included."""
    if is_dataclass(value) and not isinstance(value, type):
        kind: str = vars(type(value))["kind"]
        return {"kind": kind, **{f.name: to_spec(getattr(value, f.name)) for f in fields(value)}}
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
    return build(part(kind), spec)


def build(cls: type[T], spec: Spec) -> T:
    """A value of this class from its fields, checked as `from_spec` does."""
    kind = vars(cls)["kind"]
    parts: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]
    known = [f.name for f in parts]
    for key in spec:
        if key != "kind" and key not in known:
            raise UnknownName(f"field of {kind}", key, known)
    values = {k: from_spec(v) for k, v in spec.items() if k != "kind"}
    hints = get_type_hints(cls)
    for name, value in values.items():
        if is_dataclass(hints[name]):  # a part of just one kind, of which pydantic would want its own configuration
            if not isinstance(value, hints[name]):
                raise BadField(cls.__name__, name, value, f"give a part of kind {vars(hints[name])['kind']}")
            continue
        try:
            _check(hints[name]).validate_python(value)
        except ValidationError as error:
            raise BadField(cls.__name__, name, value, error.errors()[0]["msg"].lower()) from None
    try:
        return cls(**values)
    except TypeError:
        missing = [f.name for f in parts if f.name not in values and f.default is MISSING]
        raise BadField(cls.__name__, ", ".join(missing), None, "this field is required") from None


@cache
def _check(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=STRICT)


def label(part: Any) -> str:
    """A part, or its spec, for people and as a key: its kind, and the fields that are not empty."""
    spec = part if isinstance(part, Mapping) else to_spec(part)
    fields = {k: v for k, v in spec.items() if k != "kind" and v not in (None, False)}
    told = ", ".join(f"{k} {label(v) if isinstance(v, Mapping) else v}" for k, v in fields.items())
    return f"{spec['kind']}({told})"


def fingerprint(value: Any) -> str:
    """SHA-256 of data in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
