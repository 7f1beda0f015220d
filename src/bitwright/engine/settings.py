"""`--set part.field=value`: a recipe with some fields changed, checked like any spec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from bitwright import registry
from bitwright.errors import BadInput, UnknownName
from bitwright.protocols import Recipe, RecipeModule
from bitwright.spec import from_spec, to_spec


def choose(
    name: str, settings: Mapping[str, str], bits: float | None, shapes: Sequence[tuple[int, int]]
) -> tuple[Recipe, str | None]:
    """The recipe of that name with these settings, at this many stored bits if given; and its caution, if any."""
    module = cast(RecipeModule, registry.load("recipes", name))
    recipe = module.RECIPE
    for path, text in settings.items():
        recipe = _set(recipe, path, path.split("."), _value(text))
    if bits is not None:
        recipe = module.at_bits(recipe, bits, shapes)
    return recipe, module.caution(recipe)


def parse(assignments: Sequence[str]) -> dict[str, str]:
    """["solver.damping=0.02"] -> {"solver.damping": "0.02"}."""
    found = {}
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise BadInput(f"--set {text}: give part.field=value, solver.damping=0.02 say.")
        found[path.strip()] = value.strip()
    return found


def _value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(value: Any, whole: str, path: list[str], new: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        raise BadInput(f"--set {whole}: {path[0]!r} cannot be set, there is no part to hold it.")
    known = [f.name for f in fields(value) if f.name not in ("name",)]
    if path[0] not in known:
        raise UnknownName(f"setting of {getattr(value, 'kind', 'recipe')}", path[0], known)
    inner = _set(getattr(value, path[0]), whole, path[1:], new) if len(path) > 1 else from_spec(new)
    if isinstance(value, Recipe):
        return replace(value, **{path[0]: inner})
    return from_spec({**to_spec(value), path[0]: to_spec(inner)})  # checks types before ranges
