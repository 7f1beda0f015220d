"""A packed weight while it is tuned: latent values, codes, continuous parameters and their optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitwright.errors import Refused
from bitwright.groups import Params, columns_of, groups, join, per_column
from bitwright.learning import Learning
from bitwright.protocols import Adaptive, Format, Planes, QTensor
from bitwright.turned import Turned

BETAS = (0.9, 0.95)
HALVINGS = 6


class Moved:
    """Tensors under Adam, each with a rate relative to its root mean square at the start; or, if `signed`, under steps
    of one length along the sign of the gradient (signSGD, arXiv 1802.04434)."""

    def __init__(self, tensors: Mapping[str, Tensor], rates: Mapping[str, float], signed: bool = False) -> None:
        self.signed = signed
        self.tensors = {k: v.clone().contiguous() for k, v in tensors.items()}
        self.rates = {k: rates[k] * float(v.square().mean().sqrt().clamp(min=1e-8)) for k, v in tensors.items()}
        groups = [{"params": [v], "lr": self.rates[k]} for k, v in self.tensors.items()]
        self.adam = torch.optim.Adam(groups, betas=BETAS, eps=1e-12, fused=True)

    def step(self, gradients: Mapping[str, Tensor], factor: float) -> None:
        """One update with all rates times `factor`."""
        if self.signed:
            for name, tensor in self.tensors.items():
                tensor.sub_(gradients[name].sign(), alpha=self.rates[name] * factor)
            return
        for group, (name, tensor) in zip(self.adam.param_groups, self.tensors.items(), strict=True):
            tensor.grad = gradients[name]
            group["lr"] = self.rates[name] * factor
        self.adam.step()
        self.adam.zero_grad()

    def forget(self) -> None:
        """No moments, as at the start."""
        self.adam.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Values and moments, for the journal."""
        found = dict(self.tensors)
        for name, tensor in self.tensors.items():
            found |= {f"{name}:{key}": value for key, value in self.adam.state[tensor].items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
            own = {key: value.clone() for key, value in state.items() if key.startswith(f"{name}:")}
            self.adam.state[tensor] = {key.removeprefix(f"{name}:"): value for key, value in own.items()}


def computed(fmt: Format, codes: Tensor, params: Params) -> tuple[Tensor, ...]:
    """What a layer computes with: the decoded weight, and the tensors of an adaptive format's mixer."""
    decoded = fmt.decode(codes, params)
    if not isinstance(fmt, Adaptive):
        return (decoded,)
    mixer = fmt.mixer(params)
    return decoded, mixer.router, mixer.inputs, mixer.outputs


class TunedWeight:
    """A weight [R, C] whose forward value is exactly what its packed planes decode to.

    Codes are those nearest to a latent weight, which takes the gradient of the decoded weight as its own
    (straight-through, arXiv 1308.3432); continuous parameters get their exact gradient through `decode`, or are fitted
    to the latent weight anew after each step, or stay (`analytic` and `frozen` of `Learning`).
    """

    def __init__(self, q: QTensor, original: Tensor | None, learning: Learning) -> None:
        self.format, self.shape = q.format, q.shape
        self.codes, self.fixed = q.format.unpack(q.planes, q.shape)
        latent = self._decode(self.fixed)
        if original is not None:
            latent = self._towards(original.float(), latent)
        self.analytic = learning.analytic
        movable = (*q.format.continuous, *(q.format.mixed if isinstance(q.format, Adaptive) else ()))
        self.moving = () if self.analytic else tuple(n for n in movable if n not in learning.frozen)
        self.still = [self.fixed[n] for n in learning.frozen if n in self.fixed and n not in movable]
        if self.still and isinstance(q.format, Turned):
            raise Refused("entries of a weight whose inputs are rotated cannot stay where they are: leave out frozen.")
        moving = {name: self.fixed[name] for name in self.moving}
        bits = q.format.bits(self.shape)
        share = learning.share((bits.total - bits.padding) / (self.shape[0] * self.shape[1]))
        rates = dict.fromkeys(moving, share * learning.parameter_rate) | {"latent": share * learning.rate}
        self.moved = Moved({"latent": latent} | moving, rates, learning.signed)
        self._refit()
        self.encode()  # where several codes have one value: those that every later encoding gives

    def _towards(self, original: Tensor, decoded: Tensor) -> Tensor:
        """As near to the original weight as the codes stay what they are."""
        fmt, fixed = self._coder, self._spread(self.fixed)
        if isinstance(self.format, Turned):
            original, decoded = self.format.turned(original), fmt.decode(self.codes, fixed)

        def same(step: Tensor) -> Tensor:
            return fmt.decode(fmt.encode(decoded + step, fixed), fixed) == decoded

        step = original - decoded
        for _ in range(HALVINGS):
            step = torch.where(same(step), step, step / 2)
        step = step * same(step)
        near = decoded + step * same(step).all(1, keepdim=True)  # codes of many weights at once may need the whole row
        if not isinstance(self.format, Turned):
            return near
        # Rounding on the way back and forth can move what lies at the border of a cell.
        latent, exact = self.format.restored(near), self.format.restored(decoded)
        stays = (self.format.encode(latent, fixed) == self.codes).all(1, keepdim=True)
        return torch.where(stays, latent, exact)

    @property
    def _coder(self) -> Format:
        """The format that sees single columns."""
        return self.format.inner if isinstance(self.format, Turned) else self.format

    def _spread(self, params: Params) -> Params:
        return per_column(params, self.format.group, self.shape[1])

    def _decode(self, params: Params) -> Tensor:
        return self.format.decode(self.codes, self._spread(params))

    def _stored(self) -> Params:
        """All parameters as they would be read back."""
        return self.format.stored(self.fixed | {k: self.moved.tensors[k] for k in self.moving})

    def _refit(self) -> None:
        """Where scales are analytic: those that the format fits to the latent weight (all entries count alike)."""
        if not self.analytic:
            return
        latent, fixed = self.moved.tensors["latent"], self._spread(self.fixed)
        if isinstance(self.format, Turned):
            latent = self.format.turned(latent)
        every = []
        for columns in groups(self.shape[1], self.format.group):
            prior = columns_of(fixed, columns)
            found = self._coder.fit(latent[:, columns], torch.ones(1, columns.stop - columns.start), prior)
            every.append({name: value for name, value in found.items() if value is not prior.get(name)})
        self.fixed = self.fixed | join(every)

    def encode(self) -> None:
        """Codes nearest to the latent weight."""
        self.codes = self.format.encode(self.moved.tensors["latent"], self._spread(self._stored()))

    def value(self) -> Tensor:
        """Float32 [R, C]: what the packed weight decodes to."""
        return self._decode(self._stored())

    def values(self) -> tuple[Tensor, ...]:
        """Everything that the layer computes with, as in `computed`."""
        return computed(self.format, self.codes, self._spread(self._stored()))

    def update(self, gradients: Sequence[Tensor], factor: float) -> None:
        """One step along the gradients of `values`; that of the decoded weight [R, C] is also the latent's."""
        gradient = gradients[0]
        moving = {k: self.moved.tensors[k].detach().requires_grad_() for k in self.moving}
        found: tuple[Tensor, ...] = ()
        if moving:
            with torch.enable_grad():
                values = computed(self.format, self.codes, self._spread(self.format.stored(self.fixed | moving)))
                pairs = [(v, g) for v, g in zip(values, gradients, strict=True) if v.requires_grad]
                found = torch.autograd.grad([v for v, _ in pairs], list(moving.values()), [g for _, g in pairs])
        for mark in self.still:
            gradient = gradient * (mark == 0)  # Adam does not move what never had a gradient
        self.moved.step({"latent": gradient} | dict(zip(moving, found, strict=True)), factor)
        self._refit()

    def planes(self) -> Planes:
        """What is stored."""
        return self.format.pack(self.codes, self._stored())

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on."""
        return self.moved.state() | {f"planes:{role}": plane for role, plane in self.planes().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.moved.restore(state)
        planes = {key.removeprefix("planes:"): v for key, v in state.items() if key.startswith("planes:")}
        self.codes, _ = self.format.unpack(planes, self.shape)
        self._refit()
