"""`--set part.field=value`: a recipe with some fields changed, checked like any spec."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

from bitwright import registry
from bitwright.artifact.layout import expert_of
from bitwright.engine.job import Job
from bitwright.errors import BadInput, UnknownName
from bitwright.recipe import Menu, Recipe, RecipeModule
from bitwright.sensitivity.scores import EXPERTS, MEASURED
from bitwright.spec import Spec, build, to_spec


def choose(
    name: str, settings: Mapping[str, str], bits: float | None, shapes: Sequence[tuple[int, int]]
) -> tuple[Recipe, str | None]:
    """The recipe of that name with these settings, at this many stored bits if given; and its caution, if any."""
    module = cast(RecipeModule, registry.load("recipes", name))
    spec = to_spec(module.RECIPE)
    for path, text in settings.items():
        _put(spec, path, value(text))
    recipe = build(Recipe, spec | {"drift": 0.0})
    if "drift" in settings or (recipe.propagate and recipe.solver.needs_hessian):  # else a recipe's own gives way
        recipe = build(Recipe, spec)
    if bits is not None:
        recipe = module.at_bits(recipe, bits, shapes)
    return recipe, module.caution(recipe)


def menu(job: Job) -> Menu | None:
    """What the allocator chooses from; None where the job fixes the formats or the recipe has no choice to offer."""
    decided = [path for path in job.settings if path.partition(".")[0] in ("format", "rules", "keep", "embedding")]
    if job.plan is not None and decided:
        raise BadInput(f"--plan and --set {decided[0]} both decide formats: give one of them.")
    limits = (job.target_bytes, job.target_bpw, job.max_kl, job.min_speed, job.max_bit_operations)
    if job.plan is not None or all(limit is None for limit in limits):
        if job.score is not None:
            raise BadInput(
                "--score is for the allocator: give it a target such as --target-size, --target-bpw or --max-kl."
            )
        return None
    found: Menu | None = getattr(registry.load("recipes", job.recipe), "MENU", None)
    formats = [path for path in decided if path.startswith("format")]
    if found is not None and found.only is None and formats:
        raise BadInput(f"--set {formats[0]} and a target both decide formats: give one of them.")
    if job.min_speed is not None and {"rules", "keep"} & set(decided):
        raise BadInput("--min-speed times what it chooses formats for: leave out --set rules and --set keep.")
    spread = job.target_bytes is None or any((job.score, job.min_speed, job.max_bit_operations))
    if found is None and spread:
        raise BadInput(f"the recipe {job.recipe} does not spread bits over tensors: give --bits or --target-size.")
    if found is not None and job.score in MEASURED and found.reference is None:
        raise BadInput(f"the recipe {job.recipe} has no format to measure groups in: choose another --score.")
    if found is not None and job.score == EXPERTS != found.score:
        raise BadInput(f"the score {EXPERTS} is for whole experts alone: give --recipe {EXPERTS}.")
    return found if found is None or job.score is None else replace(found, score=job.score)


def parse(assignments: Sequence[str]) -> dict[str, str]:
    """["solver.damping=0.02"] -> {"solver.damping": "0.02"}."""
    found = {}
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise BadInput(f"--set {text}: give part.field=value, solver.damping=0.02 say.")
        if path.strip() in found:
            raise BadInput(f"--set {path.strip()} is given twice: give it once.")
        found[path.strip()] = value.strip()
    return found


def value(text: str) -> Any:
    """What a setting on the command line means: JSON, "none", or the text itself; no number is infinite."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadInput(f"{text} is no value of a setting: give a finite number.")
    return number


def beside(recipe: Recipe, menu: Menu, asked: Mapping[str, str]) -> Recipe:
    """The recipe without the rules that a menu for everything replaces: what was asked for stays."""
    if menu.only is not None:
        return recipe
    return replace(recipe, rules=recipe.rules if "rules" in asked else (), keep=recipe.keep if "keep" in asked else ())


def offered(recipe: Recipe, menu: Menu, asked: Mapping[str, str], name: str) -> bool:
    """Whether an allocator chooses for this weight: the menu does, and neither `--set keep` nor `rules` names it."""
    names = (name, *(expert_of(name) or ())[:1])
    return menu.offers(name) and not any(fnmatchcase(str(n), p) for _, p in _patterns(recipe, asked) for n in names)


def free_tables(job: Job, menu: Menu) -> bool:
    """Whether an allocator chooses for embedding and head too."""
    asked = any(path.partition(".")[0] == "embedding" for path in job.settings)
    return bool(menu.tables) and job.target_bpw is None and not asked


def refuse_idle(recipe: Recipe, asked: Mapping[str, str], names: Sequence[str]) -> None:
    """`BadInput` where a pattern that was asked for is that of no weight: it would change nothing."""
    for field, pattern in _patterns(recipe, asked):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise BadInput(
                f"--set {field}: {pattern!r} matches no linear of the blocks, which are called "
                f"{names[0]} and the like: correct the pattern or take it out."
            )


def _patterns(recipe: Recipe, asked: Mapping[str, str]) -> list[tuple[str, str]]:
    """Fields and patterns of `keep` and `rules`, as far as they were asked for."""
    given = [("keep", pattern) for pattern in recipe.keep] + [("rules", pattern) for pattern, _ in recipe.rules]
    return [(field, pattern) for field, pattern in given if field in asked]


def _put(spec: Spec, path: str, new: Any) -> None:
    """Set one field of a nested spec; names and types are checked when the whole is built."""
    *parts, last = path.split(".")
    for name in parts:
        if name not in spec:
            raise UnknownName(f"setting of {spec['kind']}", name, [key for key in spec if key != "kind"])
        if not isinstance(spec[name], dict):
            raise BadInput(f"--set {path}: {name!r} is no part, nothing in it can be set.")
        spec = spec[name]
    if last in ("name", "kind") or (last not in spec and not parts):
        raise UnknownName("setting of the recipe", last, [key for key in spec if key not in ("name", "kind")])
    spec[last] = new
