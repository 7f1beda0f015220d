"""What was asked for as budgets of the allocator, and what falls short in the words of the question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright.allocate.choose import LOSS, Allocation, Infeasible
from bitwright.allocate.problem import Budget, Where
from bitwright.artifact.layout import expert_name
from bitwright.engine.job import Job
from bitwright.engine.units import (
    BIT_OPERATIONS,
    BLOCK,
    BYTES,
    NANOSECONDS,
    Shapes,
    Units,
    bit_operations,
    stored_bytes,
    tied,
)
from bitwright.recipe import Menu

if TYPE_CHECKING:
    from bitwright.artifact.layout import Weight
    from bitwright.engine.plan import Plan


@dataclass(frozen=True)
class Rest:
    """What every choice costs beside its units: headers and fixed tensors, and the step of the engine around them."""

    bytes: int  # a little more or less, as the choice changes the headers
    block_bytes: int  # of these, linears in blocks that nothing is chosen for
    block_weights: int  # all of them
    bit_operations: int
    nanoseconds: int | None  # None where speed was not asked for

    def speed(self, allocation: Allocation) -> float | None:
        """Tokens a second of a choice."""
        if self.nanoseconds is None:
            return None
        return 1e9 / max(self.nanoseconds + allocation.totals[NANOSECONDS], 1)


def rest_of(base: Plan, shapes: Shapes, tables: Shapes, free: bool, nanoseconds: int | None) -> Rest:
    """Beside units of block weights `shapes` and, where they are `free`, of `tables`; `base` is any plan."""
    weights = base.contents.quantization.weights
    in_blocks = [w for w in weights if w.name not in tables]
    fixed = [w for w in in_blocks if w.name not in shapes and expert_name(w.name, 0) not in shapes]
    chosen = [w for w in weights if w not in fixed and (free or w.name not in tables)]
    multiplied = fixed + [w for w in weights if w.name in head_of(tables) and not free]

    def size(of: Iterable[Weight]) -> int:
        return sum(stored_bytes(base.formats[w.name], w.shape) for w in of)

    return Rest(
        bytes=base.file_bytes - size(chosen),
        block_bytes=size(fixed),
        block_weights=sum(w.count for w in in_blocks),
        bit_operations=sum(bit_operations(base.formats[w.name], w.shape) for w in multiplied),
        nanoseconds=nanoseconds,
    )


def head_of(tables: Shapes) -> Shapes:
    """The matrix that makes logits: the last of embedding and head."""
    return dict(list(tables.items())[-1:])


def budgets(job: Job, menu: Menu, units: Units, rest: Rest) -> list[Budget]:
    """What the units may take in all, or those of each block where losses compare only inside one."""
    found = []
    if job.target_bytes is not None:
        found.append(Budget(BYTES, job.target_bytes - rest.bytes))
    if job.target_bpw is not None:
        found.append(Budget(BYTES, int(job.target_bpw * rest.block_weights / 8) - rest.block_bytes))
    if job.min_speed is not None and rest.nanoseconds is not None:
        found.append(Budget(NANOSECONDS, int(1e9 / job.min_speed) - rest.nanoseconds))
    if job.max_bit_operations is not None:
        found.append(Budget(BIT_OPERATIONS, job.max_bit_operations - rest.bit_operations))
    if not menu.apart:
        return found
    weights = {tie: sum(units.weights[name] for name in tie) for tie in tied(units.told_by, BLOCK)}
    total = sum(weights.values())
    return [
        Budget(budget.resource, (budget.upper or 0) * own // total, where=among(tie))
        for budget in found
        for tie, own in weights.items()
    ]


def among(names: Iterable[str]) -> Where:
    """Whether a unit is one of these."""
    known = frozenset(names)
    return lambda unit: unit.name in known


def why(job: Job, units: Units, rest: Rest, error: Infeasible) -> str:
    """What falls short, and by how much; of speed and operations in the units that were asked for."""
    told = []
    for resource, short in error.lacks.items():
        least = sum(min(option.costs.get(resource, 0) for option in unit.options) for unit in units.told_by)
        if resource == NANOSECONDS and rest.nanoseconds is not None:
            fastest, fixed = rest.nanoseconds + least, rest.nanoseconds
            alone = job.min_speed is not None and 1e9 / max(fastest, 1) < job.min_speed
            told.append(
                f"the fastest choice makes {1e9 / max(fastest, 1):,.0f} tokens/s here, {fastest / 1e3:,.0f} us each, "
                f"{max(fixed, 0) / 1e3:,.0f} of them attention, norms and waiting"
                if alone
                else f"within the other limits a token takes {short / 1e3:,.1f} us too long"
            )
        elif resource == BIT_OPERATIONS:
            told.append(
                f"{short / 1e9:.4g} giga bit operations too few (at least {(least + rest.bit_operations) / 1e9:.4g})"
            )
    lost = sum(min(option.loss for option in unit.options) for unit in units.told_by)
    if LOSS in error.lacks or (job.max_kl is not None and lost > job.max_kl):
        told.append(f"the best choice is predicted to lose {lost:.3g} nats a token; allow more, or another recipe")
    return "; ".join(told) + "." if told else str(error)


def asked(job: Job) -> str:
    """What the user wants, in words."""
    given = {
        f"a file of {(job.target_bytes or 0) / 1e6:g} MB": job.target_bytes,
        f"{job.target_bpw} bits a weight": job.target_bpw,
        f"a divergence of {job.max_kl}": job.max_kl,
        f"{job.min_speed or 0:g} tokens/s": job.min_speed,
        f"{(job.max_bit_operations or 0) / 1e9:g} giga bit operations a token": job.max_bit_operations,
    }
    return " with ".join(text for text, value in given.items() if value is not None)
