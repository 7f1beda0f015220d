"""AdaQuant (arXiv 2006.10518): gradient descent on the layer's output error over weights and ranges together.

The weight that is rounded takes the gradient of the rounded one as its own (straight-through, arXiv 1308.3432), so it
may cross any number of steps of the grid; scales and mins have their exact gradient. Over calibration inputs the error
is tr(D H D^T), so H stands for all of them and no batches are drawn. Biases and ranges of activations are not part of
it: here activations have their ranges when the model runs.

Of a format in blocks the product of the errors of all its prefixes is lowered: what Double Rounding (arXiv 2502.01199)
asks of training, one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.errors import BadField
from bitwright.groups import Params, per_column
from bitwright.linalg import Hessian
from bitwright.protocols import Elastic, Format, QTensor, Solver
from bitwright.solvers.rtn import Rtn
from bitwright.turned import as_coded

BETAS = (0.9, 0.95)
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Adaquant:
    """`steps` of Adam from what `start` finds; no row ends worse than it began.

    `rate` is relative to the root mean square of the change that `start` made to a row, `parameter_rate` to that of
    the parameter; both fall along a cosine. `damping` is relative to the mean diagonal of the Hessian.
    """

    kind: ClassVar[str] = "adaquant"
    needs_hessian: ClassVar[bool] = True
    start: Solver = field(default_factory=lambda: Rtn(weighted=True))
    steps: int = 100
    rate: float = 0.01
    parameter_rate: float = 2e-4
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 100_000:
            raise BadField(self, "steps", self.steps, "give 0 to 100000")
        for name in ("rate", "parameter_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadField(self, name, getattr(self, name), "give 0 or more")
        if not self.damping > 0:
            raise BadField(self, "damping", self.damping, "give a positive share of the mean diagonal, 0.01 say")

    @as_coded
    def solve(self, w: Tensor, fmt: Format, hessian: Hessian | None) -> QTensor:
        """What `start` finds, improved; without statistics just what `start` finds."""
        q = self.start.solve(w, fmt, hessian)
        if hessian is None or self.steps == 0:
            return q
        work = _Course(w.masked_fill(hessian.diagonal == 0, 0.0), fmt, hessian.damped(self.damping), q)
        rates = dict.fromkeys(work.moving, self.parameter_rate) | {"latent": self.rate}
        for step in range(self.steps):
            work.step(rates, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))
        work.judge()
        return QTensor(fmt, q.shape, fmt.pack(work.best_codes, work.best_params))


class _Course:
    """The state of a descent: latent weight [R, C], parameters, and the best codes and parameters of each row."""

    def __init__(self, w: Tensor, fmt: Format, h: Tensor, q: QTensor) -> None:
        self.w, self.fmt, self.h = w, fmt, h
        codes, self.params = fmt.unpack(q.planes, q.shape)
        self.best_codes, self.best_params, self.least = codes, self.params, torch.full((len(w), 1), torch.inf)
        self._rate(codes, self.params)
        spread = self._spread(self.params)
        decoded = fmt.decode(codes, spread)
        # Rows in which nothing was changed have nothing to gain either.
        self.unit = {"latent": (decoded - w).square().mean(1, keepdim=True).sqrt()}
        self.moving = {name: self.params[name].clone() for name in fmt.continuous}
        self.unit |= {name: v.square().mean().sqrt() for name, v in self.moving.items()}
        self.latent = torch.where(fmt.encode(w, spread) == codes, w, decoded)
        self.moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in self._tensors().items()}
        self.steps = 0

    def _tensors(self) -> dict[str, Tensor]:
        return self.moving | {"latent": self.latent}

    def _spread(self, params: Params) -> Params:
        return per_column(params, self.fmt.group, self.w.shape[1])

    def _views(self) -> list[Callable[[Tensor, Params], Tensor]]:
        """Decoders of the weights whose errors count: every prefix of a format in blocks, else the weight itself."""
        fmt = self.fmt
        if not isinstance(fmt, Elastic):
            return [fmt.decode]
        counts = range(1, fmt.blocks + 1)
        return [partial(fmt.decode_prefix, count=count) for count in counts]

    def step(self, rates: dict[str, float], factor: float) -> None:
        """One update of everything, with all rates times `factor`."""
        codes, pulls = self.judge()
        moving = {name: v.requires_grad_() for name, v in self.moving.items()}
        with torch.enable_grad():
            params = self._spread(self.fmt.stored(self.params | moving))
            weighed = [(view(codes, params) * pull).sum() for view, pull in zip(self._views(), pulls, strict=True)]
            found = torch.autograd.grad(torch.stack(weighed).sum(), list(moving.values()))
        self.moving = {name: v.detach() for name, v in moving.items()}
        gradients = dict(zip(moving, found, strict=True)) | {"latent": torch.stack(pulls).sum(0)}
        self.steps += 1
        for name, tensor in self._tensors().items():
            self._adam(tensor, gradients[name], self.moments[name], rates[name] * factor * self.unit[name])

    def judge(self) -> tuple[Tensor, list[Tensor]]:
        """Codes of the weight as it is now, and `_rate` of them."""
        stored = self.fmt.stored(self.params | self.moving)
        codes = self.fmt.encode(self.latent, self._spread(stored))
        return codes, self._rate(codes, stored)

    def _rate(self, codes: Tensor, stored: Params) -> list[Tensor]:
        """Rows that are better than ever are kept. The gradient of the logarithm of each view's error by that view."""
        params = self._spread(stored)
        total, pulls = torch.zeros(len(self.w), 1), []
        for view in self._views():
            rest = view(codes, params) - self.w
            slope = rest @ self.h
            error = (slope * rest).sum(1, keepdim=True).clamp(min=TINY)
            total += error.log()
            pulls.append(2 * slope / error)
        if any(len(v) < len(self.w) for v in stored.values()):  # rows share parameters: all or none
            total = total.sum().expand(len(self.w), 1)
        better = total < self.least
        self.least = torch.where(better, total, self.least)
        self.best_codes = torch.where(better, codes, self.best_codes)
        self.best_params = {k: torch.where(better[: len(v)], v, self.best_params[k]) for k, v in stored.items()}
        return pulls

    def _adam(self, tensor: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: Tensor) -> None:
        """In place (arXiv 1412.6980); gradients have no natural size, so nothing is added to their norm but dust."""
        for moment, beta, value in zip(moments, BETAS, (gradient, gradient.square()), strict=True):
            moment.mul_(beta).add_(value, alpha=1 - beta)
        first, second = (moment / (1 - beta**self.steps) for moment, beta in zip(moments, BETAS, strict=True))
        tensor.sub_(rate * first / (second.sqrt() + TINY))
