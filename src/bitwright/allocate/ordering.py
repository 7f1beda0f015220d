"""In which order steps are taken, whatever is spent in all: those of one item one after the other, the best first."""

from __future__ import annotations

from collections.abc import Sequence


def order(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Every (item, step) by falling gain for its cost; `losses` and `sizes` are those of an item before and after each
    step.

    Steps that gain more together than the first of them alone count with their mean (the lower hull of the losses), so
    that a step of little use does not hide a good one behind it. Equals stay in the order of items.
    """
    rated: list[tuple[float, int, int]] = []
    for item, (loss, size) in enumerate(zip(losses, sizes, strict=True)):
        at, rate = 0, float("inf")
        while at + 1 < len(loss):
            rates = [(loss[at] - loss[to]) / (size[to] - size[at]) for to in range(at + 1, len(loss))]
            best = max(range(len(rates)), key=rates.__getitem__)
            rate = min(rate, rates[best])  # rounding must not put a step before the one it builds on
            rated += [(-rate, item, step) for step in range(at, at + best + 1)]
            at += best + 1
    return [(item, step) for _, item, step in sorted(rated)]
