"""Text that a mixture of experts writes itself, so that all experts see some (EBSS of MoEQuant, arXiv 2505.03804).

A beam search whose cost is the mean negative log-likelihood plus `balance` times the imbalance of the experts that the
branch has used so far. The paper leaves open how sequences are made to differ: here the second token of every branch is
drawn. It loops without a limit, so no run of `RUN` tokens may occur twice in a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.calibrate.tokens import first_token
from bitwright.models.continuation import continued

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BRANCHES = 4
RUN = 12  # tokens
GROUP = 8  # sequences written together


def balanced_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    experts: Sequence[tuple[str, int]],
    balance: float,
    count: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Tensor:
    """Int64 [count, length]. `experts`: path of every module that is called with chosen experts, and how many it has.

    Runs on one thread, so that any machine writes the same. `BadInput` if the tokenizer has no token to begin with.
    """
    first, threads = first_token(tokenizer), torch.get_num_threads()
    draw = torch.Generator().manual_seed(seed)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), _counting(model, experts) as used:
            parts = []
            for start in range(0, count, GROUP):
                group = min(GROUP, count - start)

                def step(at: int, start: int = start, group: int = group) -> None:
                    progress(start * length + group * at, count * length)

                parts.append(_search(model, used, first, group, length, balance, draw, step))
    finally:
        torch.set_num_threads(threads)
    return torch.cat(parts)


def imbalance(used: Tensor) -> Tensor:
    """[..., L, E] counts -> [...]: deviation of the shares of experts, mean over the layers (equation 6)."""
    shares = used / used.sum(-1, keepdim=True).clamp(min=1)
    return shares.std(-1).mean(-1)


def _search(
    model: PreTrainedModel,
    used: _Used,
    first: int,
    group: int,
    length: int,
    balance: float,
    draw: torch.Generator,
    step: Callable[[int], None],
) -> Tensor:
    """Sequences [group, length], the best branch of each."""
    ids = torch.full((group * BRANCHES, 1), first, dtype=torch.int64)
    score, cache = torch.zeros(group, BRANCHES), None
    counts = torch.zeros(group * BRANCHES, *used.shape)
    rows = torch.arange(group)[:, None] * BRANCHES
    while ids.shape[1] < length:
        step(ids.shape[1])
        used.now = torch.zeros_like(counts)
        logits, cache = continued(model, ids[:, -1:], cache, logits_to_keep=1)
        counts = counts + used.now
        logs = logits[:, -1].float().log_softmax(-1).view(group, BRANCHES, -1)
        vocabulary = logs.shape[-1]
        if ids.shape[1] == 1:  # all branches are alike: each is given another token
            token = torch.multinomial(logs[:, 0].exp(), BRANCHES, generator=draw)
            parent = torch.arange(BRANCHES).expand(group, -1)
            score = logs[:, 0].gather(1, token)
        else:
            logs = _without_repeats(ids, logs.flatten(0, 1)).view_as(logs)
            total = score[..., None] + logs
            cost = -total / ids.shape[1] + balance * imbalance(counts).view(group, BRANCHES, 1)
            best = cost.flatten(1).topk(BRANCHES, largest=False).indices
            parent, token = best // vocabulary, best % vocabulary
            score = total.flatten(1).gather(1, best)
        chosen = (rows + parent).flatten()
        ids = torch.cat([ids[chosen], token.view(-1, 1)], dim=1)
        counts = counts[chosen]
        cache.reorder_cache(chosen)
    cost = -score / (length - 1) + balance * imbalance(counts).view(group, BRANCHES)
    return ids.view(group, BRANCHES, length)[torch.arange(group), cost.argmin(1)]


def _without_repeats(ids: Tensor, logs: Tensor) -> Tensor:
    """Log-probabilities [B, V] without tokens that would make the last `RUN` of [B, T] occur a second time."""
    if ids.shape[1] < RUN:
        return logs
    runs = ids.unfold(1, RUN, 1)  # [B, T - RUN + 1, RUN]
    seen = (runs[..., :-1] == ids[:, None, 1 - RUN :]).all(-1)
    branch, place = seen.nonzero(as_tuple=True)
    logs = logs.clone()
    logs[branch, runs[branch, place, -1]] = -torch.inf
    return logs


class _Used:
    """How often experts are chosen in one step: `now` [B, L, E]."""

    def __init__(self, layers: int, experts: int) -> None:
        self.shape = layers, experts
        self.now = torch.zeros(0, layers, experts)


@contextmanager
def _counting(model: PreTrainedModel, experts: Sequence[tuple[str, int]]) -> Iterator[_Used]:
    used = _Used(len(experts), max(count for _, count in experts))

    def counter(layer: int) -> Callable[[Any, Any], None]:
        def count(_: Any, args: Any) -> None:
            chosen = args[1].view(len(used.now), -1)
            used.now[:, layer].scatter_add_(1, chosen, torch.ones(chosen.shape))

        return count

    hooks = [model.get_submodule(path).register_forward_pre_hook(counter(i)) for i, (path, _) in enumerate(experts)]
    try:
        yield used
    finally:
        for hook in hooks:
            hook.remove()
