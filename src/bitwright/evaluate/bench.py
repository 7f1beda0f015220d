"""Speed of a packed model in the compiled engine: decoding, prompts, and how far the machine's ceilings are.

Runs of all settings and of a rival take turns (A B A B), and medians are told: what else the machine does meets all
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Protocol

from bitwright.errors import Refused
from bitwright.runtime.engine import Engine

ROUNDS = 5
DECODED = 32  # tokens of one run
SHORT, LONG = 16, 1000  # tokens before them
PROMPT = 512


@dataclass(frozen=True)
class Lengths:
    """Tokens before the decoded ones, and of a prompt; less where a model reads less."""

    short: int
    long: int
    prompt: int

    @classmethod
    def of(cls, positions: int) -> Lengths:
        """For a model that reads so many tokens; `Refused` below some dozens."""
        most = positions - DECODED - 1
        if most < SHORT:
            raise Refused(f"the model reads only {positions} tokens: a speed needs {SHORT + DECODED + 1}.")
        return cls(SHORT, min(LONG, most), min(PROMPT, positions))


class Machine(Protocol):
    """Something that reads and makes tokens with a number of threads."""

    def decode(self, context: int, tokens: int) -> float:
        """Seconds for `tokens` tokens one after the other, behind `context` others."""

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of so many tokens."""


class Compiled:
    """The compiled engine; `ids` are at least as many tokens as the longest context."""

    def __init__(self, engine: Engine, ids: Sequence[int]) -> None:
        self.engine = engine
        self.ids = list(ids)

    def decode(self, context: int, tokens: int) -> float:
        """Seconds, sampling included."""
        core = self.engine.core
        if core.position < context:
            core.truncate(0)
            core.forward(self.ids[:context])
        core.truncate(context)
        start = perf_counter()
        core.generate([self.ids[context]], tokens, lambda _: True, chunk=tokens)
        return perf_counter() - start

    def prefill(self, tokens: int) -> float:
        """Seconds, with the logits of the last token."""
        self.engine.core.truncate(0)
        start = perf_counter()
        self.engine.core.forward(self.ids[:tokens])
        return perf_counter() - start


@dataclass(frozen=True)
class Rates:
    """Tokens a second, medians over rounds."""

    decode: float
    context_1000: float
    prefill: float


def rates(
    machines: Sequence[Machine],
    lengths: Lengths,
    rounds: int = ROUNDS,
    step: Callable[[int, int], None] | None = None,
) -> list[Rates]:
    """Of each machine; the first round warms up and is not counted."""
    runs: list[tuple[int, Callable[[Machine], float]]] = [
        (DECODED, lambda machine: machine.decode(lengths.short, DECODED)),
        (DECODED, lambda machine: machine.decode(lengths.long, DECODED)),
        (lengths.prompt, lambda machine: machine.prefill(lengths.prompt)),
    ]
    seconds: list[list[list[float]]] = [[[] for _ in machines] for _ in runs]
    for turn in range(rounds + 1):
        for (_, run), found in zip(runs, seconds, strict=True):
            for machine, times in zip(machines, found, strict=True):
                took = run(machine)
                if turn:
                    times.append(took)
        if step is not None:
            step(turn + 1, rounds + 1)
    by_run = [[count / median(t) for t in found] for (count, _), found in zip(runs, seconds, strict=True)]
    return [Rates(*row) for row in zip(*by_run, strict=True)]


@dataclass(frozen=True)
class Roofline:
    """Best rates of this machine, and what a token needs of them."""

    bytes_per_second: float
    macs_per_second: float
    bytes_per_token: int  # weights, each once
    macs_per_token: int

    @classmethod
    def of(cls, engine: Engine, threads: int) -> Roofline:
        """Measured in about a second, reading a stretch as long as the weights."""
        from bitwright import _core

        return cls(*_core.ceilings(engine.weight_bytes, threads), engine.weight_bytes, engine.weights)

    @property
    def tokens_per_second(self) -> float:
        """No decoder of these weights can be faster: the slower of reading and computing."""
        return 1 / max(self.bytes_per_token / self.bytes_per_second, self.macs_per_token / self.macs_per_second)

    def share(self, decoded: float) -> float:
        """Of the ceiling, for tokens a second at a short context."""
        return decoded / self.tokens_per_second
