"""A model run without its weights: parameters stay on the meta device, activations are small and real."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only


@dataclass(frozen=True, eq=False)
class Use:
    """One operation in which an activation met a parameter."""

    parameter: str  # full name
    part: bool  # only a slice of the parameter took part, such as one expert
    op: str  # "linear", "embedding", "layer_norm", "mul", ...
    input: Tensor  # the activation, kept so that its identity can be compared


class Trace(TorchFunctionMode):
    """Follows parameters through a forward pass and records their uses in order.

    Operations among activations are computed; those between an activation and a meta parameter return noise of the
    right shape. So control flow that depends on data (routers, experts) runs, whatever the size of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._noise = torch.Generator().manual_seed(0)
        # id -> (name, is it a slice, the tensor itself: an id is only good while its tensor lives)
        self._known: dict[int, tuple[str, bool, Tensor]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._known.setdefault(id(tensor), (name, False, tensor))

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        meta = [t for t in tensors if t.is_meta]
        if func is torch.Tensor.device.__get__:
            return torch.device("cpu")  # activations follow the device of parameters
        if not meta:
            return func(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and args[0].is_meta:
            return self._slice(args[0], func(*args))
        real = [t for t in tensors if not t.is_meta]
        if not real:
            return self._derived(meta, func(*args, **kwargs))
        name = getattr(func, "__name__", str(func)).strip("_")
        for tensor in meta:
            if id(tensor) in self._known:
                parameter, part, _ = self._known[id(tensor)]
                self.uses.append(Use(parameter, part, name, real[0]))
        result = func(*tree_map_only(Tensor, _to_meta, args), **tree_map_only(Tensor, _to_meta, kwargs))
        return tree_map_only(Tensor, self._real, result)

    def _slice(self, whole: Tensor, result: Tensor) -> Tensor:
        """`parameter[e]`: the result is known as a part of the parameter."""
        if id(whole) in self._known:
            self._known[id(result)] = (self._known[id(whole)][0], True, result)
        return result

    def _derived(self, sources: list[Tensor], result: Any) -> Any:
        """Casts, transposes and views of one parameter are still that parameter."""
        if isinstance(result, Tensor) and result.is_meta and len(sources) == 1 and id(sources[0]) in self._known:
            name, part, source = self._known[id(sources[0])]
            part = part or result.numel() != source.numel()
            self._known[id(result)] = (name, part, result)
        return result

    def _real(self, tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=self._noise, dtype=tensor.dtype)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta")
