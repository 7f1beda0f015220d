"""A model as lm-eval sees it. Imports lm-eval: import this module only when tasks run."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from torch import Tensor, nn

from bitwright.errors import Refused
from bitwright.evaluate.run import Progress

BATCH_TOKENS = 2048
"""Tokens of one forward pass, padding included."""

Request = tuple[tuple[str, str], list[int], list[int]]


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Log-likelihoods of continuations by any causal module that maps int64 [B, T] to `.logits` [B, T, V].

    Requests go longest first in batches padded on the right: a causal model needs no mask for that.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_positions: int, progress: Progress | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.progress = progress

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, without special tokens unless asked for."""
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def _loglikelihood_tokens(self, requests: list[Request], **_: Any) -> list[tuple[float, bool]]:
        alike: dict[tuple[int, ...], list[int]] = {}  # answers of one token need the same logits
        for i, (_names, context, continuation) in enumerate(requests):
            alike.setdefault(tuple((context + continuation)[-(self.max_positions + 1) : -1]), []).append(i)
        order = iter(sorted(alike, key=len, reverse=True))
        answers: dict[int, tuple[float, bool]] = {}
        for first in order:
            batch = [first, *islice(order, max(1, BATCH_TOKENS // len(first)) - 1)]
            for row, logits in zip(batch, self._logits(batch), strict=True):
                for i in alike[row]:
                    wanted = torch.tensor(requests[i][2])
                    answers[i] = _likelihood(logits[len(row) - len(wanted) : len(row)], wanted)
            if self.progress is not None:
                self.progress(len(answers), len(requests))
        return [answers[i] for i in range(len(requests))]

    def _logits(self, rows: list[tuple[int, ...]]) -> Tensor:
        padded = torch.full((len(rows), max(map(len, rows))), self.eot_token_id)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        with torch.inference_mode():
            logits: Tensor = self.model(padded).logits
        return logits

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not offered: the perplexity of record has its own protocol."""
        raise Refused("perplexity is measured by `bitwright evaluate --text`, not by a task of the harness.")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not offered."""
        raise Refused("tasks that generate text are not offered; choose one that compares likelihoods.")


def _likelihood(logits: Tensor, continuation: Tensor) -> tuple[float, bool]:
    logs = torch.log_softmax(logits.float(), -1)
    chosen = logs.gather(1, continuation[:, None])
    return float(chosen.sum(dtype=torch.float64)), bool((logs.argmax(-1) == continuation).all())
