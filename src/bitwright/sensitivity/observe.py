"""One forward and backward pass of the float model: what every linear sees, and how much its outputs matter.

For a change D of a weight the model's KL divergence a token is, to second order and with errors of different rows and
tokens independent, 1/2 sum_r E_t[g_tr^2 (D x_t)_r^2], where g_t is the gradient of the log-likelihood of a text that
the model itself draws (the Fisher information). Two summaries of g are kept: its mean square in every row, and the
gram of the inputs weighted by |g_t|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitwright.artifact.layout import expert_name
from bitwright.calibrate.observe import Gram
from bitwright.errors import WorkFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Observed:
    """Sums over tokens for one linear [R, C], float32."""

    gram: Gram  # sum of x x^T; that of the first of the linears that share their input
    guided: Tensor  # [C, C], sum of |g|^2 x x^T
    gradient: Tensor  # [R], sum of g^2
    share: float = 1.0  # of all tokens that reach it


@dataclass
class Turn:
    """Cosine of what enters and what leaves a block, summed over tokens."""

    cosine: float = 0.0
    tokens: int = 0


def observe(
    model: PreTrainedModel,
    waves: list[tuple[str, ...]],
    blocks: list[str],
    ids: Tensor,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
    stacks: Sequence[str] = (),
) -> tuple[dict[str, Observed], list[Turn]]:
    """Statistics of the linears in `waves` (each a set of paths that share an input) on `ids` int64 [S, T].

    And of every expert of `stacks`, parameters [E, R, C], by `expert_name`.
    """
    found: dict[str, Observed] = {}
    experts: dict[int, Observed] = {}  # by address
    for stack in stacks:
        for e, w in enumerate(model.get_parameter(stack)):
            square = torch.zeros(w.shape[1], w.shape[1])
            own = Observed(Gram(square, 0, 0.0), square.clone(), torch.zeros(w.shape[0]))
            found[expert_name(stack, e)] = experts[w.data_ptr()] = own
    for wave in waves:
        for name in wave:
            linear = _linear(model, name)
            square = torch.zeros(linear.in_features, linear.in_features)
            found[name] = Observed(Gram(square, 0, 0.0), square.clone(), torch.zeros(linear.out_features))
    turns = [Turn() for _ in blocks]
    draw = torch.Generator().manual_seed(seed)
    with _watched(model, waves, blocks, found, turns), _WatchExperts(experts):
        for done, sequence in enumerate(ids):
            progress(done, len(ids))
            _backward(model, sequence[None], draw)
    for wave in waves:
        for name in wave[1:]:
            found[name].gram = found[wave[0]].gram
    for own in experts.values():
        own.share = own.gram.tokens / ids.numel()
    for name, seen in found.items():
        if not bool(seen.guided.isfinite().all() and seen.gram.sum.isfinite().all()):
            raise WorkFailed(f"the statistics of {name} are not finite: the model overflows on the calibration text.")
    return found, turns


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _backward(model: PreTrainedModel, ids: Tensor, draw: torch.Generator) -> None:
    """Gradients of the log-likelihood of tokens that the model draws itself, given `ids` [1, T]."""
    with torch.enable_grad():
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=inputs, use_cache=False).logits
    with torch.no_grad():
        p = logits[0].float().softmax(-1)
        drawn = torch.multinomial(p, 1, generator=draw)
        p.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=p.dtype))  # gradient of -log p(drawn)
    logits.backward(p[None])


@contextmanager
def _watched(
    model: nn.Module, waves: list[tuple[str, ...]], blocks: list[str], found: dict[str, Observed], turns: list[Turn]
) -> Iterator[None]:
    handles: list[Any] = []
    for wave in waves:
        for place, name in enumerate(wave):
            handles.append(_linear(model, name).register_forward_hook(_statistics(found[name], first=place == 0)))
    for path, turn in zip(blocks, turns, strict=True):
        handles.append(model.get_submodule(path).register_forward_hook(_turning(turn), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _WatchExperts(TorchFunctionMode):
    """Records every product with a slice of a stack."""

    def __init__(self, experts: dict[int, Observed]) -> None:
        self.experts = experts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.linear and self.experts and args[1].data_ptr() in self.experts:
            _record(self.experts[args[1].data_ptr()], args[0], output, first=True)
        return output


def _statistics(seen: Observed, first: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        _record(seen, args[0], output, first)

    return hook


def _record(seen: Observed, inputs: Tensor, output: Tensor, first: bool) -> None:
    x = inputs.detach().reshape(-1, inputs.shape[-1])
    if first:
        seen.gram = seen.gram.plus(Gram.of(x))

    def arrived(gradient: Tensor) -> None:
        square = gradient.detach().reshape(len(x), -1).square()
        seen.gradient.add_(square.sum(0))
        seen.guided.addmm_((x * square.sum(1, keepdim=True)).t(), x)

    output.register_hook(arrived)  # type: ignore[no-untyped-call]


def _turning(turn: Turn) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).detach()
        after = (output[0] if isinstance(output, tuple) else output).detach()
        cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1)
        turn.cosine += float(cosine.sum())
        turn.tokens += cosine.numel()

    return hook
