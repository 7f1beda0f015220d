"""The allocator: brute force, properties, side constraints, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from bitwright.allocate.choose import Infeasible, allocate, frontier, option_of, smallest
from bitwright.allocate.hull import hull_arrays
from bitwright.allocate.problem import Budget, Count, Option, Side, Unit
from bitwright.errors import Refused

NAMES = ("a2", "b3", "c4")


def random_units(count: int, seed: int, options: Sequence[str] = NAMES) -> list[Unit]:
    """Losses and costs without order, so that nothing may rely on convex or monotone curves."""
    draw = np.random.default_rng(seed)
    return [
        Unit(
            f"u{i:02}",
            tuple(
                Option(
                    name, float(draw.random()), {"bytes": int(draw.integers(1, 50)), "ms": int(draw.integers(1, 20))}
                )
                for name in options
            ),
            frozenset({"even" if i % 2 == 0 else "odd"}),
        )
        for i in range(count)
    ]


def least_bytes(units: list[Unit]) -> int:
    return sum(min(o.costs["bytes"] for o in u.options) for u in units)


def brute(units: list[Unit], bytes_: int, ms: int, objective: str = "sum") -> float:
    best = np.inf
    for options in itertools.product(*(u.options for u in units)):
        if sum(o.costs["bytes"] for o in options) <= bytes_ and sum(o.costs["ms"] for o in options) <= ms:
            losses = [o.loss for o in options]
            best = min(best, sum(losses) if objective == "sum" else max(losses))
    return best


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("objective", ["sum", "max"])
def test_enumeration_finds_nothing_better(seed: int, objective: str) -> None:
    units = random_units(6, seed)
    best = brute(units, 130, 60, objective)
    budgets = [Budget("bytes", 130), Budget("ms", 60)]
    if np.isinf(best):
        with pytest.raises(Infeasible):
            allocate(units, budgets, objective=objective)
        return
    found = allocate(units, budgets, objective=objective)
    assert found.loss == pytest.approx(best, rel=1e-9)
    assert found.bound <= found.loss
    assert found.gap < 1e-5
    assert found.totals["bytes"] <= 130
    assert found.totals["ms"] <= 60


def test_order_of_units_does_not_matter() -> None:
    units = random_units(30, 1)
    same = [Unit(u.name, u.options[:1] * 1 + u.options[1:], u.tags) for u in units]
    shuffled = [same[i] for i in np.random.default_rng(0).permutation(30)]
    assert allocate(units, [Budget("bytes", 500)]).choice == allocate(shuffled, [Budget("bytes", 500)]).choice


def test_more_budget_never_hurts_and_loose_budgets_cost_nothing() -> None:
    units = random_units(12, 2)
    losses = [allocate(units, [Budget("bytes", limit)]).loss for limit in range(140, 500, 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(sum(min(o.loss for o in u.options) for u in units))


def test_the_price_is_what_a_byte_saves() -> None:
    units = random_units(200, 3)
    here, there = (allocate(units, [Budget("bytes", limit)]) for limit in (3000, 3100))
    assert here.prices["bytes"] * 100 == pytest.approx(here.loss - there.loss, rel=0.15)


def test_ties_fixed_forbidden_and_counts_hold() -> None:
    units = random_units(12, 4)
    side = Side(
        ties=(("u00", "u01"), ("u01", "u02")),
        fixed={"u03": "b3"},
        forbidden=frozenset({("u04", "a2")}),
        counts=(Count("c4", at_least=3, at_most=4), Count("a2", at_most=1, where=lambda u: "odd" in u.tags)),
    )
    choice = allocate(units, [Budget("bytes", 320)], side).choice
    assert choice["u00"] == choice["u01"] == choice["u02"]
    assert choice["u03"] == "b3"
    assert choice["u04"] != "a2"
    assert 3 <= list(choice.values()).count("c4") <= 4
    assert sum(name == "a2" for unit, name in choice.items() if int(unit[1:]) % 2) <= 1


def test_budgets_of_a_part_and_from_below() -> None:
    units = random_units(10, 5)
    even = Budget("bytes", upper=90, lower=80, where=lambda u: "even" in u.tags)
    found = allocate(units, [even])
    spent = sum(option_of(u, found.choice[u.name]).costs["bytes"] for u in units if "even" in u.tags)
    assert 80 <= spent <= 90


def test_impossible_limits_are_named_with_what_is_missing() -> None:
    units = random_units(8, 6)
    least = least_bytes(units)
    with pytest.raises(Infeasible, match=rf"bytes: at least {least} needed, {least - 7} allowed, 7 too few") as caught:
        allocate(units, [Budget("bytes", least - 7), Budget("ms", 10_000)])
    assert caught.value.lacks == {"bytes": 7}
    assert "at their cheapest" in str(caught.value)


def test_smallest_size_under_a_loss_is_the_other_side_of_the_same_coin() -> None:
    units = random_units(8, 7)
    best = allocate(units, [Budget("bytes", least_bytes(units) + 40)])
    small = smallest(units, "bytes", best.loss)
    assert small.totals["bytes"] <= best.totals["bytes"]
    assert small.loss <= best.loss * (1 + 1e-9)
    with pytest.raises(Infeasible, match="loss"):
        smallest(units, "bytes", sum(min(o.loss for o in u.options) for u in units) * 0.99)


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_is_close_and_its_bound_holds(seed: int) -> None:
    units = random_units(300, 10 + seed, options=[f"o{i}" for i in range(8)])
    proven, quick = (allocate(units, [Budget("bytes", 4000)], method=m) for m in ("exact", "hull"))
    assert quick.totals["bytes"] <= 4000
    assert quick.bound <= proven.loss + 1e-9
    assert proven.loss <= quick.loss + 1e-9
    assert quick.loss <= proven.loss * 1.01


def test_the_hull_alone_on_tables() -> None:
    loss, cost = np.array([[3.0, 1.0, 0.0], [2.0, 1.5, 0.1]]), np.array([[1.0, 2, 3], [1, 2, 9]])
    assert hull_arrays(loss, cost, 5)[0].tolist() == [2, 1]
    assert hull_arrays(loss, cost, 1.5)[0] is None
    assert hull_arrays(loss, cost, 100)[0].tolist() == [2, 2]


def ladder(count: int) -> list[Unit]:
    """Equal sizes, importance falling with the index."""
    return [
        Unit(f"u{i:02}", tuple(Option(f"{b}", (count - i) * (8 - b), {"bits": 100 * b}) for b in (2, 4, 8)))
        for i in range(count)
    ]


@pytest.mark.parametrize(("mean", "high"), [(2, 0), (3.0, 5), (3.19, 5), (3.2, 6), (4, 10)])
def test_ranking_follows_the_paper(mean: float, high: int) -> None:
    choice = allocate(ladder(10), [Budget("bits", int(mean * 1000))], method="rank").choice
    assert [choice[f"u{i:02}"] for i in range(10)] == ["4"] * high + ["2"] * (10 - high)


def test_ranking_mixes_neighbours_only() -> None:
    choice = allocate(ladder(10), [Budget("bits", 6000)], method="rank").choice
    assert [choice[f"u{i:02}"] for i in range(10)] == ["8"] * 5 + ["4"] * 5
    with pytest.raises(Refused, match="same options"):
        allocate([*ladder(2), Unit("other", ladder(3)[0].options[:2])], [Budget("bits", 9)], method="rank")


def test_a_frontier_falls() -> None:
    plans = frontier(random_units(20, 8), "bytes", 9)
    assert [p.loss for p in plans] == sorted((p.loss for p in plans), reverse=True)
    assert plans[0].totals["bytes"] < plans[-1].totals["bytes"]


def test_misuse_is_refused() -> None:
    units = random_units(3, 9)
    for side, told in [
        (Side(fixed={"nobody": "a2"}), "nobody"),
        (Side(fixed={"u00": "zz"}), "no option is left for u00"),
    ]:
        with pytest.raises(Refused, match=told):
            allocate(units, [], side)
    with pytest.raises(Refused, match="no cost in 'joules'"):
        allocate(units, [Budget("joules", 3)])
    with pytest.raises(Refused, match="one upper budget"):
        allocate(units, [Budget("bytes", 99), Budget("ms", 99)], method="hull")
    with pytest.raises(Refused, match="two units"):
        allocate([units[0], units[0]], [])
