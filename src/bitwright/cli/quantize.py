"""`bitwright quantize`."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.artifact.folder import require_place
from bitwright.cli.output import (
    Json,
    Threads,
    duration,
    interruptible,
    megabytes,
    note,
    parse_size,
    print_json,
    progress,
    quiet_stdout,
)
from bitwright.cli.plans import calibration_of, costs, decided, estimates, plan_facts, print_plan, save
from bitwright.cli.tune import distilled
from bitwright.errors import BadInput

if TYPE_CHECKING:
    from bitwright.engine.job import Job
    from bitwright.engine.run import Result

WORST = 5  # layers named in the summary


def quantize(
    model: Annotated[str, typer.Argument(help="A model folder, a GGUF file, or a name: smollm2, gemma3-270m.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder to write.")] = None,
    recipe: Annotated[str | None, typer.Option(help="See `bitwright recipes`; default: gptq.")] = None,
    quality: Annotated[
        str | None,
        typer.Option(help="In place of a recipe: fast, default (9 minutes of distillation) or best (140 minutes)."),
    ] = None,
    bits: Annotated[float | None, typer.Option(help="Stored bits a weight in the blocks, everything counted.")] = None,
    target_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest size of the weight files, 45MB say: bits go where they matter."),
    ] = None,
    target_bpw: Annotated[
        float | None, typer.Option(help="Mean stored bits a weight in the blocks: bits go where they matter.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Smallest files with at most this predicted KL divergence a token (nats).")
    ] = None,
    min_speed: Annotated[
        float | None,
        typer.Option(metavar="TOKENS/S", help="At least this fast on this machine, alone or with a target."),
    ] = None,
    max_bops: Annotated[
        float | None, typer.Option(metavar="GIGA", help="Most bit operations a token, in thousands of millions.")
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="What decides where bits matter; default: as the recipe says.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Formats of all tensors from a file that --save-plan wrote.")
    ] = None,
    save_plan: Annotated[Path | None, typer.Option(help="Write the formats of all tensors to a file.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Calibration text (.txt, .jsonl, .gz), repeatable; default: own samples.")
    ] = None,
    verify_uniform: Annotated[
        bool,
        typer.Option("--verify-uniform", help="Also make the file with one format for all blocks; keep the better."),
    ] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="PART.FIELD=VALUE", help="Repeatable.")] = None,
    max_memory: Annotated[float | None, typer.Option(metavar="MB", help="Beside the imported libraries.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    tokens: Annotated[
        int | None,
        typer.Option(help="Calibration tokens; default: 20480, of presets that learn 61440 if text is given."),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of one calibration sequence; 512 by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the calibration text.")] = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Make a small model out of a large one. An interrupted run goes on when the command is repeated."""
    if out is None and not dry_run:
        raise BadInput("there is no place to write to: give a new folder with -o OUT.")
    taken = {"--recipe": recipe is not None, "--plan": plan is not None, "--verify-uniform": verify_uniform}
    if quality is not None and any(taken.values()):
        raise BadInput(f"--quality decides by itself: leave out {next(name for name in taken if taken[name])}.")
    if save_plan is not None:
        require_place(save_plan, "--save-plan")
    job = make_job(
        model=model, out=out or Path("not-written"), recipe=recipe or "gptq", bits=bits,
        target_bytes=parse_size(target_size, "--target-size"), target_bpw=target_bpw, max_kl=max_kl,
        min_speed=min_speed, max_bit_operations=_times(max_bops, 1e9, "--max-bops"),
        score=score, plan=plan, settings=settings or [], data=tuple(data or ()), tokens=tokens,
        length=length, seed=seed, max_memory=_times(max_memory, 1e6, "--max-memory"), threads=threads,
    )  # fmt: skip
    if verify_uniform:
        from bitwright.engine.rival import require_size

        require_size(job)
    with interruptible("run the same command again and it goes on where it was."), quiet_stdout(json):
        if dry_run:
            told = plan_facts(job if quality is None else _started(job, quality), save_plan)
        else:
            result = run(job, save_plan, verify_uniform) if quality is None else improve(job, quality, save_plan)
            told = summary(job, result, job.out)
    if json:
        print_json(told)
    elif dry_run:
        print_plan(told)
    else:
        print_summary(told)


def make_job(*, settings: list[str], **fields: Any) -> Job:
    """The job of these options; `BadInput` names the option that cannot be."""
    from pydantic import ValidationError

    from bitwright.engine.job import Job
    from bitwright.engine.settings import parse

    names = {
        "bits": "bits",
        "target_bytes": "target-size",
        "target_bpw": "target-bpw",
        "max_kl": "max-kl",
        "plan": "plan",
    }
    limits = {"min_speed": "min-speed", "max_bit_operations": "max-bops"}  # go with any target
    given = [f"--{option}" for field, option in names.items() if fields.get(field) is not None]
    if {"--bits", "--plan"} & set(given):
        given += [f"--{option}" for field, option in limits.items() if fields.get(field) is not None]
    if len(given) > 1:
        raise BadInput(f"{' and '.join(given)} both decide the formats: give one of them.")
    try:
        return Job(settings=parse(settings), **fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = (names | limits).get(str(first["loc"][0]), str(first["loc"][0]).replace("_", "-"))
        raise BadInput(f"--{option} {first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}.") from None


def run(job: Job, save_plan: Path | None = None, verify_uniform: bool = False) -> Result:
    """Print what is planned, then carry the job out under a progress bar."""
    from bitwright.artifact.folder import require_free
    from bitwright.engine.rival import better
    from bitwright.engine.run import prepare
    from bitwright.engine.run import quantize as carry_out

    require_free(job.out)
    with progress() as step:
        source, structure, plan = prepare(job, step)
    save(plan, save_plan)
    time, memory = estimates(job, source, structure, plan)
    note(
        f"{job.model} -> {job.out}: {megabytes(plan.file_bytes)} in all, "
        f"{plan.stored_bits_per_weight:.3f} stored bits a weight in the blocks ({plan.recipe.name})"
    )
    if plan.decision is not None:
        note(decided(asdict(plan.decision)))
    note(costs(time, memory, calibration_of(job, plan)))
    if plan.caution:
        note(f"caution: {plan.caution}")
    with progress() as step:
        if not verify_uniform:
            return carry_out(job, step, (source, structure, plan))
        kept, other = better(job, step)
    told = [f"{r.decision.score} {r.divergence:.3g}" for r in (kept, other) if r.decision is not None]
    note(f"measured KL divergence a token: {' against '.join(told)}; the first is kept")
    return kept


def _started(job: Job, quality: str) -> Job:
    """The quantization that a preset starts with; needs torch, which a wrong option must not wait for."""
    from bitwright.tune.preset import job_of

    return job_of(job, quality)


def improve(job: Job, quality: str, save_plan: Path | None = None) -> Result:
    """Carry out a preset: quantize as `run` does, then let the result learn from the float model."""
    from bitwright.cli import tune
    from bitwright.tune.preset import MINUTES, make

    _started(job, quality)  # refuses before anything is said
    if MINUTES[quality]:
        note(f"preset {quality}: quantization, then {MINUTES[quality]:g} minutes of distillation")
    return make(job, quality, lambda start: run(start, save_plan), tune.run)


def summary(job: Job, result: Result, out: Path) -> dict[str, Any]:
    """What was made, for machines."""
    from bitwright.evaluate.speed import peak_rss_bytes

    manifest = result.manifest
    tuning = None if manifest.tuning is None else manifest.tuning.model_dump(mode="json", exclude={"data": {"runs"}})
    return {
        "path": str(out),
        "model": job.model,
        "recipe": manifest.recipe.name,
        "file_bytes": manifest.totals.file_bytes,
        "stored_bits_per_weight": manifest.totals.stored_bits_per_weight,
        "seconds": result.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "sha256": {row.name: row.sha256 for row in manifest.files if row.name.endswith(".safetensors")},
        "fingerprint": manifest.fingerprint,
        "verification": manifest.verification,
        "decision": None if result.decision is None else asdict(result.decision),
        "kl_on_calibration_text": result.divergence,
        "tokens_per_second": result.tokens_per_second,
        "tuning": tuning,
        "unseen_experts": list(result.unseen),
        "not_transformed": [{"transform": kind, "linear": name} for kind, name in result.left],
        "layer_errors": result.errors,
    }


def print_summary(told: dict[str, Any]) -> None:
    """What was made, for people."""
    print(f"{told['path']}: {megabytes(told['file_bytes'])}, {told['stored_bits_per_weight']:.3f} stored bits a weight")
    print(f"took {duration(told['seconds'])}, peak memory {megabytes(told['peak_rss_bytes'])}")
    print("verified: reopened in a fresh process, logits equal, bytes as planned")
    for name, sha256 in told["sha256"].items():
        print(f"sha256 {sha256}  {name}")
    if told["decision"]:
        print(
            f"KL divergence from the float model on calibration text: {told['kl_on_calibration_text']:.3g} a token, "
            f"predicted {told['decision']['loss']:.3g}"
        )
    if told["tokens_per_second"] is not None:
        print(
            f"{told['tokens_per_second']:.0f} tokens/s behind a short context, "
            f"predicted {told['decision']['tokens_per_second']:.0f}"
        )
    if told["tuning"]:
        print(distilled(told["tuning"]))
    worst = sorted(told["layer_errors"].items(), key=lambda item: -item[1])[:WORST]
    print("largest relative output errors: " + ", ".join(f"{name} {error:.3g}" for name, error in worst))
    unseen = told["unseen_experts"]
    if unseen:
        print(
            f"{len(unseen)} experts saw no calibration token and were solved from their weights alone: {unseen[0]} ..."
        )
    left = Counter((row["transform"], re.sub(r"\.\d+\.", ".*.", row["linear"])) for row in told["not_transformed"])
    for (kind, name), count in left.items():
        print(f"{kind} left the inputs of {name} as they are ({count} times)")


def _times(number: float | None, unit: float, option: str) -> int | None:
    if number is not None and not math.isfinite(number):
        raise BadInput(f"{option} {number:g}: give a finite number.")
    return None if number is None else round(number * unit)
