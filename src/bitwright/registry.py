"""Parts are found by the name of their file; third parties add theirs as entry points."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from bitwright.errors import UnknownName

ROOMS = ("formats", "partitions", "solvers", "transforms")


@cache
def _installed() -> Any:  # type differs between versions of Python
    """Of all packages; looking them up reads a file of every one."""
    return entry_points()


def names(room: str) -> list[str]:
    """All parts of a room ("recipes", "formats", ...), without importing any of them."""
    path = import_module(f"bitwright.{room}").__path__
    own = [m.name.replace("_", "-") for m in iter_modules(path) if not m.name.startswith("_")]
    return sorted(own + [e.name for e in _installed().select(group=f"bitwright.{room}")])


def load(room: str, name: str) -> ModuleType:
    """The module of a part; `UnknownName` with the nearest name if there is none."""
    if name not in names(room):
        raise UnknownName(room.removesuffix("s"), name, names(room))
    for entry in _installed().select(group=f"bitwright.{room}"):
        if entry.name == name:
            module = entry.load()
            assert isinstance(module, ModuleType)
            return module
    return import_module(f"bitwright.{room}.{name.replace('-', '_')}")


@cache
def _rooms() -> dict[str, str]:
    """The room of every kind of part."""
    return {name: room for room in ROOMS for name in names(room)}


def part(kind: str) -> type:
    """The class of this kind, whatever room it is in."""
    known = _rooms()
    if kind not in known:
        raise UnknownName("part", kind, known)
    found = [
        v for v in vars(load(known[kind], kind)).values() if isinstance(v, type) and getattr(v, "kind", None) == kind
    ]
    return found[0]
