"""Tokens a second and peak memory, as a user of this process has them."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter


@dataclass(frozen=True)
class Speed:
    """Generation speed over several runs, tokens a second."""

    median: float
    slowest: float
    fastest: float
    runs: int


def generation_speed(generate: Callable[[], int], runs: int = 3) -> Speed:
    """Time `generate`, which makes some tokens and returns how many; one run to warm up, then `runs` timed ones."""
    assert runs >= 3
    generate()
    rates = sorted(_rate(generate) for _ in range(runs))
    return Speed(median(rates), rates[0], rates[-1], runs)


def _rate(generate: Callable[[], int]) -> float:
    start = perf_counter()
    return generate() / (perf_counter() - start)


def peak_rss_bytes() -> int:
    """Largest resident memory this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
