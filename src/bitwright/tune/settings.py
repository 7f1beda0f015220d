"""What the user asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitwright import registry
from bitwright.engine.estimate import readable
from bitwright.engine.settings import value
from bitwright.learning import Learning
from bitwright.spec import build, to_spec

if TYPE_CHECKING:
    from bitwright.models.source import Source


class Tuning(BaseModel):
    """One `bitwright tune`: either `steps` or `minutes` says how long."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    artifact: Path
    out: Path
    against: str | None = None  # the float model; None: the one the artifact was made from
    data: tuple[Path, ...] = ()  # none: the model's own samples
    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    learning: Learning = Learning()
    seed: int = 0
    threads: int | None = Field(default=None, gt=0)  # changes the speed, never the result

    @model_validator(mode="after")
    def _one_length(self) -> Tuning:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give steps or minutes, one of them")
        return self

    @property
    def length(self) -> int:
        """Tokens of a sequence; known once the tuning is `fitted` to a model."""
        assert self.learning.length is not None
        return self.learning.length

    def fitted(self, source: Source) -> Tuning:
        """The same with sequences of a length that the model reads; `Refused` where a longer one is asked for."""
        length = readable(source, self.learning.length, "--set length=")
        return self.model_copy(update={"learning": replace(self.learning, length=length)})


def learning(settings: Mapping[str, str], start: Learning = Learning()) -> Learning:  # noqa: B008 (frozen)
    """`start` with some fields changed, as `--set rate=0.001` gives them."""
    spec = to_spec(start)
    for name, text in settings.items():
        spec[name] = value(text)
    return build(Learning, spec)


def of_recipe(name: str) -> Learning:
    """How the recipe of that name is trained; as `tune` learns where it does not say."""
    found: Learning = getattr(registry.load("recipes", name), "TRAINING", Learning())
    return found
