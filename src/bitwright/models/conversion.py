"""From the names of a checkpoint to those of transformers v5 modules, by transformers' own rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.errors import BadInput
from bitwright.models.mapped import MappedFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Recipe:
    """How one or more parameters are made from stored tensors: by a converter, or as they are (None)."""

    target: str
    converter: Any = None
    parts: list[tuple[str, str]] = field(default_factory=list)  # (source pattern, stored name)


class Conversion:
    """Lazy view of a checkpoint under module names; reads and joins one parameter at a time.

    `names` lists each tied tensor once; `unused` are stored tensors that the model has no place for. `BadInput` names
    a missing tensor or one of a wrong shape.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, MappedFile], where: str) -> None:
        self._model, self._stored = model, stored
        wanted: dict[str, Tensor] = model.state_dict(keep_vars=True)
        tied: dict[int, list[str]] = {}
        for name, tensor in wanted.items():
            tied.setdefault(id(tensor), []).append(name)
        self._aliases = {names[0]: names for names in tied.values()}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
        self._recipes, self.unused = _recipes(model, wanted, stored)
        self.names = tuple(self._aliases)
        for name in self.names:
            self._check(name, where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in the module."""
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """A view of the file, or what the converter makes of its parts."""
        recipe = self._recipe(name)
        assert recipe is not None
        return self._made(recipe, name)

    def differ_though_tied(self) -> bool:
        """Whether the checkpoint holds different values for parameters that the config ties."""
        for names in self._aliases.values():
            held = [self._made(self._recipes[n], n) for n in names if n in self._recipes]
            if any(not torch.equal(held[0], other) for other in held[1:]):
                return True
        return False

    def _recipe(self, name: str) -> _Recipe | None:
        return next((self._recipes[alias] for alias in self._aliases[name] if alias in self._recipes), None)

    def _check(self, name: str, where: str) -> None:
        recipe = self._recipe(name)
        if recipe is None:
            raise BadInput(f"{where} lacks the tensor {name} of a {self._model.config.model_type} model.")
        shapes = [self._stored[key].entries[key].shape for _, key in recipe.parts]
        if recipe.converter is None and shapes[0] != self._shapes[name]:
            raise BadInput(f"{where}: {name} has shape {shapes[0]}, its config asks for {self._shapes[name]}.")

    def _made(self, recipe: _Recipe, name: str) -> Tensor:
        views: list[tuple[str, str, Callable[[], Tensor]]]
        views = [(pattern, key, partial(self._stored[key].tensor, key)) for pattern, key in recipe.parts]
        if recipe.converter is None:
            return views[0][2]()
        converter = deepcopy(recipe.converter)
        for pattern, key, view in views:
            converter.add_tensor(recipe.target, key, pattern, view)
        made = converter.convert(recipe.target, model=self._model, config=self._model.config)
        tensor: Tensor = made[name][0] if isinstance(made.get(name), list) else made[name]
        if tuple(tensor.shape) != self._shapes[name]:
            raise BadInput(f"the parts of {name} make shape {tuple(tensor.shape)}, not what the config asks for.")
        return tensor


def _recipes(
    model: PreTrainedModel, wanted: Mapping[str, Tensor], stored: Mapping[str, MappedFile]
) -> tuple[dict[str, _Recipe], tuple[str, ...]]:
    """The same steps as `convert_and_load_state_dict_in_model` of transformers, without loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = model.base_model_prefix

    recipes: dict[str, _Recipe] = {}
    unused = []
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name not in wanted:
            unused.append(key)
        elif pattern is None:
            recipes.setdefault(name, _Recipe(name)).parts.append((key, key))
        else:
            recipe = recipes.setdefault(name, _Recipe(name, by_pattern[pattern]))
            recipe.parts.append((pattern, key))
            for target in recipe.converter.target_patterns:
                recipes[name.replace(recipe.converter.target_patterns[0], target)] = recipe
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
    return recipes, tuple(key for key in unused if not ignored.search(key))
