"""What the inputs of a layer look like: Hessians from one block run over all calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitwright.errors import WorkFailed
from bitwright.linalg import Hessian

Run = Callable[[Tensor], Tensor]


class _Reached(Exception):
    """The run came to the observed layer; nothing after it is needed."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class _Watch(TorchFunctionMode):
    """Stops at the first `F.linear` with a layer's weight. Modes belong to one thread, module hooks to all."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1] is self.weight:
            raise _Reached(args[0])
        return func(*args, **(kwargs or {}))


def gram(run: Run, layer: nn.Linear, batch: Tensor) -> tuple[Tensor, int]:
    """Sum of x x^T, float32 [C, C], over the inputs that one batch brings to a layer, and their number."""
    try:
        with _Watch(layer.weight):
            run(batch)
    except _Reached as reached:
        x = reached.x.reshape(-1, reached.x.shape[-1]).float()
        return x.t() @ x, x.shape[0]
    raise WorkFailed("the block ran without calling one of its own layers: its structure was misread.")


class _WatchExperts(TorchFunctionMode):
    """Collects x x^T for each expert of one stacked parameter [E, R, C]; the run goes on to its end."""

    def __init__(self, stack: Tensor) -> None:
        self.first = stack.data_ptr()
        self.step = stack.stride(0) * stack.element_size()
        self.shape = stack.shape
        self.grams: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1].shape == self.shape[1:]:
            expert, rest = divmod(args[1].data_ptr() - self.first, self.step)
            if rest == 0 and 0 <= expert < self.shape[0]:
                x = args[0].reshape(-1, args[0].shape[-1]).float()
                self.grams[expert] = self.grams.get(expert, 0) + x.t() @ x
                self.counts[expert] = self.counts.get(expert, 0) + x.shape[0]
        return func(*args, **(kwargs or {}))


def expert_grams(run: Run, stack: Tensor, batch: Tensor) -> dict[int, tuple[Tensor, int]]:
    """As `gram`, for each expert that the batch reaches."""
    watch = _WatchExperts(stack)
    with watch:
        run(batch)
    return {e: (g, watch.counts[e]) for e, g in watch.grams.items()}


def expert_hessians(
    seen: Iterable[dict[int, tuple[Tensor, int]]], experts: int, name: str
) -> dict[int, Hessian | None]:
    """One for each expert, None for those that no batch reached; one sum an expert is held, not every batch's."""
    sums: dict[int, tuple[Tensor, int]] = {}
    for batch in seen:
        for e, (part, count) in batch.items():
            total, before = sums.get(e, (torch.zeros_like(part, dtype=torch.float64), 0))
            sums[e] = (total.add_(part), before + count)
    return {e: hessian([sums[e]] if e in sums else [], f"{name}[{e}]") for e in range(experts)}


def hessian(grams: Iterable[tuple[Tensor, int]], name: str) -> Hessian | None:
    """Their sum in order, scaled to (2 / tokens) sum x x^T; None without tokens. Non-finite values are named."""
    total: Tensor | None = None
    tokens = 0
    for part, count in grams:
        total = part.double() if total is None else total.add_(part)
        tokens += count
    if total is None or tokens == 0:
        return None
    matrix = total.mul_(2 / tokens).float()
    if not bool(matrix.isfinite().all()):
        raise WorkFailed(f"the inputs of {name} are not finite: the model overflows on the calibration text.")
    return Hessian(matrix, tokens)
