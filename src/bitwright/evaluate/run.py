"""Measure models on windows, all of them in step, the float model once a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.errors import BadInput, UnknownName, WorkFailed
from bitwright.evaluate.metrics import Totals, calibration_error
from bitwright.evaluate.protocol import Protocol
from bitwright.evaluate.result import Result
from bitwright.evaluate.scores import TokenScores, score_
from bitwright.evaluate.speed import peak_rss_bytes
from bitwright.evaluate.temperature import fit_temperature
from bitwright.evaluate.window_cache import WindowCache

Progress = Callable[[int, int], None]
"""Called after each window with windows done and windows in all."""


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: the module, or a function that loads it when the first window needs it.

    `fingerprint` names weights *and* arithmetic (hash of the artifact, activations, engine) for the cache;
    None: this model is measured anew every time. `engine` is told in the result.
    """

    model: nn.Module | Callable[[], nn.Module]
    fingerprint: str | None = None
    engine: str = "torch"


def evaluate(
    model: nn.Module,
    windows: Tensor,
    protocol: Protocol,
    *,
    reference: nn.Module | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure one model, beside a float one if given. `windows` int64 [W, T] as `prepare` made them."""
    candidates = {"model": Candidate(model)}
    if reference is not None:
        candidates["reference"] = Candidate(reference)
    name = None if reference is None else "reference"
    return compare(candidates, windows, protocol, reference=name, progress=progress)["model"]


def compare(
    candidates: Mapping[str, Candidate],
    windows: Tensor,
    protocol: Protocol,
    *,
    reference: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Result]:
    """Measure several models on the same windows; `reference` is the name of the one the others are held against.

    Every model maps int64 [1, T] to an object with `.logits` [1, T, V], V the same for all. Nothing of size V outlives
    its window. With a `cache` folder each finished window of a model with a fingerprint is kept, and not done again.
    Raises `WorkFailed` where logits are not finite, `BadInput` where a vocabulary differs.
    """
    if reference is not None and reference not in candidates:
        raise UnknownName("model to compare with", reference, candidates)
    order = sorted(candidates, key=lambda name: name != reference)  # the reference first, the others as given
    runs = {name: _Run(name, candidates[name], _cache_of(name, candidates, reference, cache)) for name in order}
    with torch.inference_mode():
        for index, window in enumerate(windows):
            _measure_window(list(runs.values()), window, index, reference)
            if progress is not None:
                progress(index + 1, len(windows))
    peak = peak_rss_bytes()
    results: dict[str, Result] = {}
    for name, run in runs.items():
        results[name] = Result(
            name,
            protocol,
            tuple(run.scores),
            run.seconds,
            peak,
            candidates[name].engine,
            results[reference] if reference not in (None, name) else None,
        )
    return {name: results[name] for name in candidates}


def _cache_of(
    name: str, candidates: Mapping[str, Candidate], reference: str | None, folder: Path | None
) -> WindowCache | None:
    model = candidates[name].fingerprint
    parent = candidates[reference].fingerprint if reference not in (None, name) else None
    if folder is None or model is None or (reference not in (None, name) and parent is None):
        return None
    return WindowCache(folder, model, parent)


class _Run:
    """One model on its way through the windows."""

    def __init__(self, name: str, candidate: Candidate, cache: WindowCache | None) -> None:
        self.name = name
        self.cache = cache
        self.scores: list[TokenScores] = []
        self.seconds = 0.0
        self._candidate = candidate
        self._module: nn.Module | None = None

    def logits(self, window: Tensor) -> Tensor:
        """Float32 [T - 1, V], what predicts the tokens after the first."""
        if self._module is None:
            model = self._candidate.model
            self._module = (model if isinstance(model, nn.Module) else model()).eval()
        logits: Tensor = self._module(window[None]).logits
        return logits[0, :-1].float()

    def measure(self, window: Tensor, index: int, parent: Tensor | None) -> tuple[TokenScores, Tensor, float]:
        """Scores, log-probabilities [T - 1, V] and seconds of one window."""
        start = perf_counter()
        logits = self.logits(window)
        if parent is not None and parent.shape != logits.shape:
            raise BadInput(
                f"{self.name} has {logits.shape[1]} tokens in its vocabulary and the model to compare with "
                f"{parent.shape[1]}; only models with one vocabulary compare."
            )
        scores = score_(logits, window[1:], parent)
        if not (np.isfinite(scores.nll).all() and np.isfinite(scores.entropy).all()):
            raise WorkFailed(f"{self.name} gives logits that are not finite in window {index}.")
        return scores, logits, perf_counter() - start

    def finish(self, scores: TokenScores, seconds: float) -> None:
        """Count one window in."""
        self.scores.append(scores)
        self.seconds += seconds


def _measure_window(runs: list[_Run], window: Tensor, index: int, reference: str | None) -> None:
    done = {run.name: run.cache.load(window) if run.cache else None for run in runs}
    missing = any(found is None for found in done.values())
    parent: Tensor | None = None
    for run in runs:
        found = done[run.name]
        if found is not None and not (run.name == reference and missing):
            run.finish(*found)
            continue
        scores, logs, seconds = run.measure(window, index, parent)
        if found is None and run.cache:
            run.cache.store(window, scores, seconds)
        if run.name == reference:
            parent = logs
        run.finish(*(found or (scores, seconds)))


@dataclass(frozen=True)
class Recalibration:
    """What one stored scalar, logits / temperature, would repair."""

    temperature: float
    ece_before: float
    ece_after: float


def recalibrate(model: nn.Module, windows: Tensor) -> Recalibration:
    """Fit the temperature on the first window, measure on the others; `windows` int64 [W, T], W at least 2."""
    if len(windows) < 2:
        raise BadInput("recalibration needs at least two windows, one to fit and one to measure; give a longer text.")
    run = _Run("model", Candidate(model), None)
    with torch.inference_mode():
        temperature = fit_temperature(run.logits(windows[0]), windows[0, 1:])
        before, after = [], []
        for window in windows[1:]:
            logits = run.logits(window)
            after.append(Totals.of(score_(logits / temperature, window[1:])))
            before.append(Totals.of(score_(logits, window[1:])))
    sums = [sum(totals[1:], start=totals[0]) for totals in (before, after)]
    return Recalibration(temperature, *(calibration_error(total.equal_width()) for total in sums))
