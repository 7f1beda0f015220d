"""How long the allocator takes: 224 tensors x 10 options under two budgets, and 100,000 groups of columns.

Both limits are asserted. Run: python benchmarks/allocate.py
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.choose import Allocation, allocate
from bitwright.allocate.problem import Budget, Option, Unit


def units(count: int, options: int, seed: int = 0) -> list[Unit]:
    """Losses c 4^-bits with noise, sizes of several tensor kinds, bytes and microseconds as costs."""
    draw = np.random.default_rng(seed)
    c, size = np.exp(draw.normal(0, 2, count)), draw.choice([1, 3, 8], count)
    found = []
    for k in range(count):
        bits = np.linspace(1.6, 8, options)
        noise = np.exp(draw.normal(0, 0.1, options))
        found.append(
            Unit(
                f"unit{k:06}",
                tuple(
                    Option(
                        f"option{i}",
                        float(c[k] * size[k] * 4 ** -bits[i] * noise[i]),
                        {"bytes": int(size[k] * bits[i] * 10_000), "us": int(size[k] * (20 + 3 * bits[i]))},
                    )
                    for i in range(options)
                ),
            )
        )
    return found


def middle(some: list[Unit], resource: str, share: float) -> int:
    """A limit between the smallest and the largest total."""
    low, high = (sum(pick(o.costs[resource] for o in u.options) for u in some) for pick in (min, max))
    return int(low + share * (high - low))


def told(name: str, found: Allocation, limit: float) -> None:
    assert found.seconds < limit, f"{name}: {found.seconds:.2f} s, at most {limit} s allowed"
    print(f"{name}: {found.seconds:.2f} s ({found.method}), gap {found.gap:.1e}")


def main() -> None:
    tensors = units(224, 10)
    for share in (0.1, 0.2, 0.4):
        budgets = [Budget("bytes", middle(tensors, "bytes", share)), Budget("us", middle(tensors, "us", share * 1.1))]
        told(f"224 units x 10 options, two budgets at {share:.0%}", allocate(tensors, budgets, gap=1e-4), 2.0)
    groups = units(100_000, 8)
    told("100,000 groups x 8 options", allocate(groups, [Budget("bytes", middle(groups, "bytes", 0.2))]), 10.0)


if __name__ == "__main__":
    main()
