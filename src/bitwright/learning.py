"""How a packed model learns: what a recipe says of its training, and what `tune` and `train` obey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bitwright.errors import BadField

BITS = 2.0  # stored bits a weight up to which rates are what they are
LOSSES = ("divergence", "entropy", "hidden")


@dataclass(frozen=True)
class Learning:
    """How tuning learns. Rates are relative to the root mean square of the tensor they move, so that one setting fits
    matrices and models of any scale.

    `rate` of latent weights, `parameter_rate` of scales, mins and the like, `vector_rate` of norms and biases. The
    first two are those of a matrix of up to 2 stored bits a weight, and 2^`per_bit` times smaller with each bit more:
    the nearer a matrix is to the float one, the shorter is the way to better codes.
    The rates rise over `warmup` of the steps and fall along a cosine to `floor`. A step sees `batch` sequences of
    `length` tokens; None: 512, or what the model reads if that is less. Codes are chosen anew every `encode_every`
    steps, a share of the matrices at each step.
    `memory`: latent weights start as near to the float weight as their codes allow, else at the decoded value; after
    a solver that compensates errors this measured worse, as the first codes to change are those it chose on purpose.

    What is learned, as weights in the sum of losses (`tune/loss.py`): `divergence` from the float model's next token,
    `entropy` of the text's next token, `hidden` states of the float model. `ambiguity` and `sharpness` let positions
    count more in the divergence where both models are uncertain.
    `frozen` names parameters of formats that do not move; one that is no scale but marks entries ("mask") keeps their
    latent weights where they are. `analytic`: scales are not learned but fitted to the latent weights at each step.
    `signed`: matrices follow the sign of their gradients, else Adam.
    """

    kind: ClassVar[str] = "learning"
    rate: float = 2e-3
    parameter_rate: float = 1e-3
    vector_rate: float = 5e-4
    per_bit: float = 0.0
    warmup: float = 0.05
    floor: float = 0.05
    batch: int = 4
    length: int | None = None
    encode_every: int = 1
    memory: bool = False
    divergence: float = 1.0
    entropy: float = 0.0
    hidden: float = 0.0
    ambiguity: float = 0.0
    sharpness: float = 1.0
    frozen: tuple[str, ...] = ()
    analytic: bool = False
    signed: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "encode_every"):
            if getattr(self, name) < 1:
                raise BadField(self, name, getattr(self, name), "give 1 or more")
        if not 0 <= self.per_bit <= 4:
            raise BadField(self, "per_bit", self.per_bit, "give 0 to 4")
        if self.length is not None and self.length < 2:
            raise BadField(self, "length", self.length, "give 2 or more tokens")
        for name in ("warmup", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadField(self, name, getattr(self, name), "give 0 to 1")
        for name in (*LOSSES, "ambiguity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadField(self, name, getattr(self, name), "give 0 or more")
        if not any(getattr(self, name) for name in LOSSES):
            raise BadField(self, "divergence", self.divergence, f"give one of {', '.join(LOSSES)} more than 0")

    def share(self, bits: float) -> float:
        """Of the rates of a matrix with so many stored bits a weight."""
        return float(2.0 ** (self.per_bit * min(BITS - bits, 0.0)))

    def factor(self, step: int, steps: int) -> float:
        """Of all rates at a step 0 .. steps - 1."""
        rise = self.warmup * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        done = (step - rise) / max(steps - rise, 1)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
