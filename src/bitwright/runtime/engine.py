"""Decoder language models in the compiled engine: text from them, and their logits as a module gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.errors import BadInput, Refused
from bitwright.runtime import native
from bitwright.runtime.linear import Activations
from bitwright.runtime.plan import Plan, read_plan, refusal, weight_bytes, weight_count
from bitwright.runtime.weights import ModuleWeights, StoredWeights

if TYPE_CHECKING:
    from bitwright import _core
    from bitwright.artifact.read import Artifact


@dataclass
class Engine:
    """One sequence of tokens in the compiled engine. Not for several threads at once."""

    core: _core.Engine
    positions: int
    vocabulary: int
    weights: int  # that a token is multiplied by
    weight_bytes: int
    _used: list[int] = field(default_factory=list)  # tokens in the cache

    def logits(self, ids: Sequence[int], every: bool = False) -> Tensor:
        """Float32 [1, V] after the tokens `ids`, or [T, V] after each of them. What the cache knows is not computed."""
        known = 0 if every else self._rewind(ids)
        if every:
            self.core.truncate(0)
        out = torch.from_numpy(self.core.forward(list(ids[known:]), every))
        self._used = list(ids)
        return out

    def tokens(
        self,
        ids: Sequence[int],
        limit: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: frozenset[int] = frozenset(),
        chunk: int = 1,
    ) -> Iterator[int]:
        """At most `limit` tokens that follow `ids`, before the first of `stop`; they arrive `chunk` at a time.

        Closing the iterator ends the work. `BadInput` if `ids` is empty or longer than the model reads.
        """
        if not 0 < len(ids) < self.positions:
            raise BadInput(f"the prompt has {len(ids)} tokens: give between 1 and {self.positions - 1}.")
        limit = min(limit, self.positions)
        known = self._rewind(ids)
        arriving: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
        closed = Event()

        def emit(new: list[int]) -> bool:
            arriving.put(new)
            return not closed.is_set()

        def work() -> None:
            failure = None
            try:
                self.core.generate(
                    list(ids[known:]), limit, emit, temperature, top_k, top_p, min_p, repetition_penalty, seed,
                    list(stop), chunk, list(ids[:known]),
                )  # fmt: skip
            except BaseException as error:
                failure = error
            arriving.put(failure)

        worker = Thread(target=work, daemon=True)
        worker.start()
        made: list[int] = []
        try:
            while isinstance(new := arriving.get(), list):
                made += new
                yield from (token for token in new if token not in stop)
            if new is not None:
                raise new
        finally:
            closed.set()
            worker.join()
            self._used = [*ids, *made][: self.core.position]

    def _rewind(self, ids: Sequence[int]) -> int:
        """Keeps the common beginning of the cache and `ids`, short of the last token; its length."""
        known = 0
        for cached, wanted in zip(self._used, ids[:-1], strict=False):
            if cached != wanted:
                break
            known += 1
        self.core.truncate(known)
        self._used = self._used[:known]
        return known


class Compiled(nn.Module):
    """The engine where a module is wanted: ids int64 [B, T] -> an object with float32 `.logits` [B, T, V]."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, ids: Tensor) -> SimpleNamespace:
        """Texts one after the other, each from its beginning."""
        rows = [self.engine.logits(row, every=True) for row in ids.tolist()]
        return SimpleNamespace(logits=rows[0][None] if len(rows) == 1 else torch.stack(rows))


def build(model: Any, threads: int = 0, fine_cache: bool = False) -> Engine:
    """The engine of a loaded causal language model; `Refused` says why it has to run in torch.

    0 threads: all cores this process may use. Keys and values are cached in 8 bits, or in 15 with `fine_cache`.
    """
    _require(model.config)
    return _engine(read_plan(model.config, ModuleWeights(model), fine_cache), threads)


def open_engine(
    artifact: Artifact,
    threads: int = 0,
    fine_cache: bool = False,
    in_place: bool = False,
    activations: Activations = "int8",
) -> Engine:
    """The engine of an artifact, without the modules of its model; else as `build`.

    `in_place`: weights are read where the artifact has them and never copied: slower, but in memory once.
    `activations` "float": weights are decoded to float32, four bytes each, and multiplied by inputs as they are.
    `BadArtifact` where config.json and tensors contradict each other.
    """
    from bitwright.models.skeleton import UNBUILDABLE
    from bitwright.runtime.load import not_a_model, read_config

    config = read_config(artifact.config)
    try:
        _require(config)
        weights = StoredWeights(artifact, config.tie_word_embeddings, activations)
        plan = read_plan(config, weights, fine_cache, in_place)
        weights.finish()
        return _engine(plan, threads)
    except UNBUILDABLE as error:
        raise not_a_model(error) from None


def _require(config: Any) -> None:
    usable, reason = native.available()
    refused = refusal(config) if usable else reason
    if refused is not None:
        raise Refused(f"the compiled engine cannot run this model ({refused}).")


def _engine(plan: Plan, threads: int) -> Engine:
    from bitwright import _core

    return Engine(
        _core.Engine(plan, threads),
        plan.positions,
        plan.vocabulary,
        sum(weight_count(weight) for weight in plan.products()),
        sum(weight_bytes(weight) for weight in plan.products()),
    )
