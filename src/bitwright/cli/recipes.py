"""`bitwright recipes`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from bitwright.cli.output import Json, print_json


def recipes(json: Json = False) -> None:
    """List the recipes, one line each."""
    from bitwright import registry

    found = {name: _first_line(name) for name in registry.names("recipes")}
    if json:
        print_json({"recipes": [{"name": name, "summary": text} for name, text in found.items()]})
        return
    width = max(map(len, found), default=0)
    for name, text in found.items():
        print(f"{name:<{width}}  {text}")


def _first_line(name: str) -> str:
    """First line of the file's docstring, read without running the file: a recipe's parts import torch."""
    import ast

    spec = find_spec(f"bitwright.recipes.{name.replace('-', '_')}")
    if spec is None or spec.origin is None:
        return "from another package"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
