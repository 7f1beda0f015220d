"""The formats of all tensors as a file that people can read, edit and give back."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bitwright.artifact.folder import writing_to
from bitwright.artifact.layout import expert_of
from bitwright.artifact.write import write_text
from bitwright.errors import BadInput, BitwrightError
from bitwright.protocols import Format
from bitwright.recipe import Recipe
from bitwright.spec import from_spec, label, to_spec

KEYS = {"formats", "embedding", "weights"}


def write(path: Path, recipe: Recipe, chosen: dict[str, Format]) -> None:
    """`formats` names every format, `embedding` and `weights` (path or pattern -> name) use the names."""
    known = {label(fmt): to_spec(fmt) for fmt in chosen.values()}
    embedding = None if recipe.embedding is None else label(recipe.embedding)
    if recipe.embedding is not None:
        known[label(recipe.embedding)] = to_spec(recipe.embedding)
    weights = {name: label(fmt) for name, fmt in chosen.items()}
    with writing_to(path) as part:
        write_text(part, json.dumps({"formats": known, "embedding": embedding, "weights": weights}, indent=2) + "\n")


def read(path: Path, recipe: Recipe, names: tuple[str, ...]) -> Recipe:
    """The recipe with the formats of a plan; every one of `names` must match a pattern, and every pattern a name.

    An expert is matched by its own name or by that of its stack.
    """
    told = _load(path)
    try:
        formats = {name: from_spec(spec) for name, spec in told["formats"].items()}
    except BitwrightError as error:
        raise BadInput(f"{path}: {error}") from None

    def named(name: Any, where: str) -> Format:
        fmt = formats.get(name)
        if not isinstance(fmt, Format):
            raise BadInput(f"{path}: {where} has the format {name!r}, which is not listed under formats.")
        return fmt

    rules = tuple((pattern, named(name, pattern)) for pattern, name in told["weights"].items())
    known = {name: (name, *(expert_of(name) or ())[:1]) for name in names}

    def matches(pattern: str, name: str) -> bool:
        return any(fnmatchcase(str(own), pattern) for own in known[name])

    idle = [pattern for pattern, _ in rules if not any(matches(pattern, name) for name in names)]
    if idle:
        raise BadInput(f"{path}: {idle[0]} is no weight of this model: correct the name, or take the line out.")
    left = [name for name in names if not any(matches(pattern, name) for pattern, _ in rules)]
    if left:
        raise BadInput(f"{path}: {left[0]} has no format: add a line, or a pattern such as '*' at the end.")
    embedding = None if told["embedding"] is None else named(told["embedding"], "embedding")
    return replace(recipe, format=rules[-1][1], rules=rules, keep=(), embedding=embedding)


def _load(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"the plan {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the plan {path} is no valid JSON: {error}.") from None
    if not isinstance(told, dict) or set(told) != KEYS:
        raise BadInput(f"the plan {path} needs exactly the keys {', '.join(sorted(KEYS))}.")
    if not isinstance(told["formats"], dict) or not isinstance(told["weights"], dict) or not told["weights"]:
        raise BadInput(f"the plan {path}: formats and weights are tables of names, and weights is not empty.")
    return told
