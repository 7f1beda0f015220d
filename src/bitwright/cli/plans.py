"""What is planned, for people and for machines: sizes, costs, and where the bits go."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.cli.output import duration, megabytes, note, print_table, progress

if TYPE_CHECKING:
    from bitwright.engine.job import Job
    from bitwright.engine.plan import Plan
    from bitwright.models.source import Source
    from bitwright.models.structure import Structure

OWN_SAMPLES = "the model's own samples"


def calibration_of(job: Job, plan: Plan) -> str | None:
    """Where the calibration text comes from; None if the recipe needs none."""
    if not plan.needs_text:
        return None
    return " and ".join(map(str, job.data)) or OWN_SAMPLES


def costs(time: float, memory: int, calibration: str | None) -> str:
    """Time and memory in one line."""
    more = "; sampling the calibration text from the model comes on top, once" if calibration == OWN_SAMPLES else ""
    return f"about {duration(time)}, {megabytes(memory)} of memory beside the libraries{more}"


def estimates(job: Job, source: Source, structure: Structure, plan: Plan) -> tuple[float, int]:
    """Seconds, and bytes of memory beside the imported libraries."""
    from bitwright.engine.estimate import peak_bytes, seconds, threads_for

    threads = threads_for(job, source, structure, plan.recipe)
    return seconds(job, source, plan, structure), peak_bytes(job, source, structure, plan.recipe, threads)


def save(plan: Plan, path: Path | None) -> None:
    """Write the formats of all tensors to a file, if one was named."""
    if path is None:
        return
    from bitwright.engine.plan_file import write

    write(path, plan.recipe, {k: v for k, v in plan.formats.items() if k not in plan.contents.parts})
    note(f"plan: {path}; edit it and give it back with --plan")


def decided(told: dict[str, Any]) -> str:
    """What the allocator expects, and what one format for all blocks would have cost."""
    here = f"predicted KL divergence {told['loss']:.3g} a token (score {told['score']}){_speed(told, '')}"
    if told["uniform"] is None:
        return f"{here}; no single format for all blocks fits"
    there = f"{told['uniform_loss']:.3g}{_speed(told, 'uniform_')}"
    return f"{here}; one format for all blocks, {told['uniform']}: {there} within the same limits"


def _speed(told: dict[str, Any], of: str) -> str:
    rate = told[f"{of}tokens_per_second"]
    return "" if rate is None else f", {rate:.0f} tokens/s here"


def _print_shares(shares: list[dict[str, Any]]) -> None:
    """Where the bits went, and why: by kind of linear, bits also by thirds of the blocks."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in shares:
        kinds.setdefault(row["kind"], []).append(row)

    def mean(rows: list[dict[str, Any]], bits: str) -> str:
        if rows[0][bits] is None:
            return "-"
        return f"{sum(row['weights'] * row[bits] for row in rows) / sum(row['weights'] for row in rows):.3g}"

    def loss(rows: list[dict[str, Any]], name: str) -> str:
        return "-" if rows[0][name] is None else f"{sum(row[name] for row in rows):.3g}"

    rows = [
        [
            kind,
            f"{sum(row['weights'] for row in own):,}",
            mean(own, "bits"),
            " ".join(f"{row['bits']:.2f}" for row in own) if len(own) > 1 else "",
            loss(own, "loss"),
            mean(own, "uniform_bits"),
            loss(own, "uniform_loss"),
        ]
        for kind, own in kinds.items()
    ]
    print_table(["kind", "weights", "bits", "by thirds", "predicted KL", "uniform bits", "uniform KL"], rows)


def plan_facts(job: Job, save_plan: Path | None) -> dict[str, Any]:
    """Everything that is known before the work, for machines."""
    from bitwright.artifact.plan import kept_rows, plan_rows
    from bitwright.engine.run import prepare

    with progress() as step:
        source, structure, plan = prepare(job, step)
    save(plan, save_plan)
    time, memory = estimates(job, source, structure, plan)
    rows = plan_rows(plan.contents.quantization, plan.contents.parts)
    formats = plan.contents.quantization.formats
    return {
        "model": job.model,
        "recipe": plan.recipe.name,
        "caution": plan.caution,
        "decision": None if plan.decision is None else asdict(plan.decision),
        "file_bytes": plan.file_bytes,
        "stored_bits_per_weight": plan.stored_bits_per_weight,
        "bits": plan.bits.named(),
        "estimated_seconds": time,
        "estimated_peak_bytes": memory,
        "calibration": calibration_of(job, plan),
        "formats": list(formats),
        "weights": [row.model_dump(mode="json") for row in rows],
        "kept": [row.model_dump(mode="json") for row in kept_rows(plan.contents.kept)],
    }


def print_plan(told: dict[str, Any]) -> None:
    """The same for people."""
    from bitwright.runtime.describe import grouped
    from bitwright.spec import label

    kinds = [kind for kind in told["bits"] if any(row["bits"][kind] for row in told["weights"])]
    rows = [
        [
            row["name"],
            str(row["count"]),
            "x".join(map(str, row["shape"])),
            str(row["format"]),
            *(f"{row['bits'][kind]:,}" for kind in kinds),
            f"{row['bytes']:,}",
        ]
        for row in grouped(told["weights"])
    ]
    print_table(["weight", "count", "shape", "format", *(f"{kind} bits" for kind in kinds), "bytes"], rows)
    print("each row: one of `count` weights\n")
    for index, spec in enumerate(told["formats"]):
        print(f"format {index}: {label(spec)}")
    print(f"kept as they are: {len(told['kept'])} tensors")
    print(f"file: {told['file_bytes']:,} bytes; blocks: {told['stored_bits_per_weight']:.4f} stored bits a weight")
    if told["decision"]:
        _print_shares(told["decision"]["shares"])
        print(decided(told["decision"]))
        print(f"{told['decision']['bit_operations'] / 1e9:.4g} giga bit operations a token")
    print(costs(told["estimated_seconds"], told["estimated_peak_bytes"], told["calibration"]))
    if told["caution"]:
        print(f"caution: {told['caution']}")
