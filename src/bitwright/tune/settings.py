"""What the user asked for, and how tuning learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitwright.engine.settings import value
from bitwright.errors import BadField
from bitwright.spec import build, to_spec


@dataclass(frozen=True)
class Learning:
    """How tuning learns. Rates are relative to the root mean square of the tensor they move, so that one setting fits
    matrices and models of any scale.

    `rate` of latent weights, `parameter_rate` of scales, mins and the like, `vector_rate` of norms and biases.
    The rates rise over `warmup` of the steps and fall along a cosine to `floor`. A step sees `batch` sequences of
    `length` tokens. Codes are chosen anew every `encode_every` steps, a share of the matrices at each step.
    `memory`: latent weights start as near to the float weight as their codes allow, else at the decoded value; after
    a solver that compensates errors this measured worse, as the first codes to change are those it chose on purpose.
    """

    kind: ClassVar[str] = "learning"
    rate: float = 2e-3
    parameter_rate: float = 1e-3
    vector_rate: float = 5e-4
    warmup: float = 0.05
    floor: float = 0.05
    batch: int = 4
    length: int = 512
    clip: float = 1.0
    encode_every: int = 1
    memory: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "encode_every"):
            if getattr(self, name) < 1:
                raise BadField(self, name, getattr(self, name), "give 1 or more")
        if self.length < 2:
            raise BadField(self, "length", self.length, "give 2 or more tokens")
        for name in ("warmup", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadField(self, name, getattr(self, name), "give 0 to 1")

    def factor(self, step: int, steps: int) -> float:
        """Of all rates at a step 0 .. steps - 1."""
        rise = self.warmup * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        done = (step - rise) / max(steps - rise, 1)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class Tuning(BaseModel):
    """One `bitwright tune`: either `steps` or `minutes` says how long."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

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


def learning(settings: Mapping[str, str]) -> Learning:
    """The default with some fields changed, as `--set rate=0.001` gives them."""
    spec = to_spec(Learning())
    for name, text in settings.items():
        spec[name] = value(text)
    return build(Learning, spec)
