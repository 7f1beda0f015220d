"""Many texts continued at once: they join and leave between steps, and share every reading of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright.errors import BadInput
from bitwright.runtime.engine import Engine
from bitwright.runtime.generate import GREEDY, Sampling

if TYPE_CHECKING:
    from bitwright import _core


@dataclass
class _Text:
    sampler: _core.Sampler
    ids: list[int]
    left: int  # tokens that may still come
    stop: frozenset[int]
    logits: _core.Floats


class Batch:
    """Texts in the sequences of one engine. Each comes out as if it were alone, to the bit."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._texts: dict[int, _Text] = {}

    @property
    def running(self) -> list[int]:
        """Texts that are not finished."""
        return list(self._texts)

    def join(
        self, ids: Sequence[int], limit: int, sampling: Sampling = GREEDY, stop: frozenset[int] = frozenset()
    ) -> int:
        """Reads a prompt; the number of the text, which later steps continue by at most `limit` tokens.

        Numbers of finished texts are used again. `BadInput` if the prompt is empty or too long.
        """
        from bitwright import _core

        if not 0 < len(ids) < self.engine.positions:
            raise BadInput(f"the prompt has {len(ids)} tokens: give between 1 and {self.engine.positions - 1}.")
        sampler = _core.Sampler(sampling.temperature, top_p=sampling.top_p, seed=sampling.seed)
        text = self.engine.core.open()
        logits = self.engine.core.forward(list(ids), sequence=text)[0]
        left = min(limit, self.engine.positions - len(ids))
        self._texts[text] = _Text(sampler, list(ids), left, stop, logits)
        return text

    def step(self) -> dict[int, int]:
        """One token of every running text. Those that reach their limit or a stop token (not told) are finished."""
        new: dict[int, int] = {}
        for number, text in list(self._texts.items()):
            token = text.sampler.next(text.logits, text.ids) if text.left > 0 else None
            if token is None or token in text.stop:
                self.leave(number)
                continue
            new[number] = token
            text.ids.append(token)
            text.left -= 1
            if text.left == 0:
                self.leave(number)
        going = [number for number in new if number in self._texts]
        if going:
            rows = self.engine.core.step(going, [new[number] for number in going])
            for number, logits in zip(going, rows, strict=True):
                self._texts[number].logits = logits
        return new

    def leave(self, text: int) -> None:
        """Ends a text and frees its cache."""
        del self._texts[text]
        self.engine.core.close(text)
