"""What the inputs of a layer look like: Hessians from one block run over all calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitwright.errors import Refused, WorkFailed
from bitwright.linalg import Hessian

Run = Callable[[Tensor], Tensor]
PRODUCTS = ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__")
MASSIVE = 10  # times the median energy: above this, a token's energy says nothing about the others


class Gram(NamedTuple):
    """Sum of x x^T, float32 [C, C], over a number of tokens; `energy` is its trace with massive tokens cut down.

    The first token of a text can have a hundred thousand times the energy of others (down projections of LLaMA-like
    models). It belongs into the sum, but damping relative to it would drown all other directions.
    """

    sum: Tensor
    tokens: int
    energy: float

    @classmethod
    def of(cls, x: Tensor) -> Gram:
        """Of inputs [..., C]."""
        x = x.reshape(-1, x.shape[-1]).float()
        each = x.square().sum(1)
        cut = each.clamp(max=MASSIVE * float(each.median())) if len(each) else each
        return cls(x.t() @ x, len(x), float(cut.sum(dtype=torch.float64)))

    def plus(self, other: Gram) -> Gram:
        """Both together."""
        return Gram(self.sum + other.sum, self.tokens + other.tokens, self.energy + other.energy)


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


def gram(run: Run, layer: nn.Linear, batch: Tensor) -> Gram:
    """Of the inputs that one batch brings to a layer."""
    return Gram.of(inputs(run, layer.weight, batch))


def inputs(run: Run, weight: Tensor, batch: Tensor) -> Tensor:
    """What one batch brings to the linear with this weight, [..., C]."""
    try:
        with _Watch(weight):
            run(batch)
    except _Reached as reached:
        return reached.x
    raise WorkFailed("the block ran without calling one of its own layers: its structure was misread.")


class _WatchExperts(TorchFunctionMode):
    """Collects the inputs of each expert of one stacked parameter [E, R, C]; the run goes on to its end.

    With an `affinity` a token counts with its routing weight to that power: the next column of as many numbers that
    something is multiplied by.
    """

    def __init__(self, stack: Tensor, affinity: float) -> None:
        self.first = stack.data_ptr()
        self.step = stack.stride(0) * stack.element_size()
        self.shape = stack.shape
        self.affinity = affinity
        self.waiting: tuple[int, Tensor] | None = None  # inputs of an expert whose routing weights are still to come
        self.grams: dict[int, Gram] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1].shape == self.shape[1:]:
            expert, rest = divmod(args[1].data_ptr() - self.first, self.step)
            if rest == 0 and 0 <= expert < self.shape[0]:
                self._arrived(expert, args[0])
        elif self.waiting is not None and getattr(func, "__name__", "") in PRODUCTS:
            expert, x = self.waiting
            column = next((a for a in args[:2] if isinstance(a, Tensor) and a.shape == (len(x), 1)), None)
            if column is not None:
                self.waiting = None
                self._add(expert, x * column ** (self.affinity / 2))
        return func(*args, **(kwargs or {}))

    def _arrived(self, expert: int, x: Tensor) -> None:
        self.check()
        if self.affinity == 0:
            self._add(expert, x)
        else:
            self.waiting = expert, x

    def _add(self, expert: int, x: Tensor) -> None:
        own = Gram.of(x)
        self.grams[expert] = self.grams[expert].plus(own) if expert in self.grams else own

    def check(self) -> None:
        """`Refused` if an expert's output was not multiplied by routing weights."""
        if self.waiting is not None:
            raise Refused("the outputs of experts are not multiplied by routing weights here: set affinity=0.")


def expert_grams(run: Run, stack: Tensor, batch: Tensor, affinity: float = 0.0) -> dict[int, Gram]:
    """As `gram`, for each expert that the batch reaches; tokens count with (routing weight) ^ affinity."""
    watch = _WatchExperts(stack, affinity)
    with watch:
        run(batch)
    watch.check()
    return watch.grams


def expert_hessians(seen: Iterable[dict[int, Gram]], experts: int, name: str) -> dict[int, Hessian | None]:
    """One for each expert, None for those that no batch reached; one sum an expert is held, not every batch's."""
    sums: dict[int, Gram] = {}
    for batch in seen:
        for e, part in batch.items():
            sums[e] = _added(sums.get(e), part)
    return {e: hessian([sums[e]] if e in sums else [], f"{name}[{e}]") for e in range(experts)}


def hessian(grams: Iterable[Gram], name: str) -> Hessian | None:
    """Their sum in order, scaled to (2 / tokens) sum x x^T; None without tokens. Non-finite values are named."""
    total: Gram | None = None
    for part in grams:
        total = _added(total, part)
    if total is None or total.tokens == 0:
        return None
    matrix = total.sum.mul_(2 / total.tokens).float()
    if not bool(matrix.isfinite().all()):
        raise WorkFailed(f"the inputs of {name} are not finite: the model overflows on the calibration text.")
    return Hessian(matrix, total.tokens, 2 / total.tokens * total.energy / len(matrix))


def _added(total: Gram | None, part: Gram) -> Gram:
    """A running sum in float64, in place."""
    if total is None:
        return part._replace(sum=part.sum.double())
    return Gram(total.sum.add_(part.sum), total.tokens + part.tokens, total.energy + part.energy)
