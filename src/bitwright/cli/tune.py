"""`bitwright tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli.output import (
    Json,
    Threads,
    duration,
    interruptible,
    megabytes,
    note,
    print_json,
    progress,
    quiet_stdout,
)
from bitwright.errors import BadInput

if TYPE_CHECKING:
    from bitwright.learning import Learning
    from bitwright.tune.run import Tuned
    from bitwright.tune.settings import Tuning

MINUTES = 15.0
TOLD_EVERY = 10  # steps


def tune(
    path: Annotated[Path, typer.Argument(help="A folder that bitwright wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write.")],
    against: Annotated[str | None, typer.Option(help="The float model; default: the one it was made from.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Text, repeatable; default: own samples.")] = None,
    steps: Annotated[int | None, typer.Option(help="How long to tune.")] = None,
    minutes: Annotated[float | None, typer.Option(help="As many steps as fit in, by a probe; default: 15.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of latent weights, relative to their size.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the text.")] = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Let a packed model learn from its float model, in the same bytes. An interrupted run goes on when repeated."""
    job = make_tuning(
        learned(settings or [], learning_rate), artifact=path, out=out, against=against, data=tuple(data or ()),
        steps=steps, minutes=MINUTES if steps is None and minutes is None else minutes, seed=seed, threads=threads,
    )  # fmt: skip
    with interruptible("run the same command again and it goes on where it was."), quiet_stdout(json):
        told = summary(job, run(job))
    if json:
        print_json(told)
    else:
        print_summary(told)


def run(job: Tuning) -> Tuned:
    """Carry a tuning out under a progress bar; of several processes only the first shows one."""
    from bitwright.tune.ranks import Ranks
    from bitwright.tune.run import tune as carry_out

    if not Ranks().leads:
        return carry_out(job)
    note(f"{job.artifact} -> {job.out}")
    with progress() as step:
        return carry_out(job, step, _tell)


def _tell(step: int, loss: float) -> None:
    if step % TOLD_EVERY == 0:
        note(f"step {step}: loss {loss:.4f}")


def learned(settings: list[str], rate: float | None) -> Learning:
    """How to learn, from the options."""
    from bitwright.engine.settings import parse
    from bitwright.tune.settings import learning

    return learning(parse(settings) | ({} if rate is None else {"rate": repr(rate)}))


def make_tuning(learning: Learning, **fields: Any) -> Tuning:
    """The tuning of these options; `BadInput` names the option that cannot be."""
    from pydantic import ValidationError

    from bitwright.tune.settings import Tuning

    try:
        return Tuning(learning=learning, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]} {first['input']}" if first["loc"] else "--steps and --minutes"
        raise BadInput(f"{option}: {first['msg'].removeprefix('Value error, ').lower()}.") from None


def summary(job: Tuning, result: Tuned) -> dict[str, Any]:
    """What was made, for machines."""
    from bitwright.evaluate.speed import peak_rss_bytes

    manifest = result.manifest
    assert manifest.tuning is not None
    return {
        "path": str(job.out),
        "base": str(job.artifact),
        "file_bytes": manifest.totals.file_bytes,
        "stored_bits_per_weight": manifest.totals.stored_bits_per_weight,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "peak_rss_bytes": peak_rss_bytes(),
        "tuning": manifest.tuning.model_dump(mode="json", exclude={"data": {"runs"}}),
        "sha256": {row.name: row.sha256 for row in manifest.files if row.name.endswith(".safetensors")},
        "verification": manifest.verification,
    }


def print_summary(told: dict[str, Any]) -> None:
    """What was made, for people."""
    tuning = told["tuning"]
    print(f"{told['path']}: {megabytes(told['file_bytes'])}, {told['stored_bits_per_weight']:.3f} stored bits a weight")
    print(distilled(tuning))
    print(
        f"took {duration(told['seconds'])} ({told['tokens_per_second']:.0f} tokens a second), "
        f"peak memory {megabytes(told['peak_rss_bytes'])}"
    )
    print("verified: reopened in a fresh process, logits equal, bytes as planned")
    for name, sha256 in told["sha256"].items():
        print(f"sha256 {sha256}  {name}")


def distilled(tuning: dict[str, Any]) -> str:
    """What a tuning did, from its row in the manifest."""
    return (
        f"{tuning['steps']} steps, {tuning['tokens']:,} tokens of {tuning['data']['data']}; divergence from the float "
        f"model on text not learned from: {tuning['before']:.4f} before, {tuning['after']:.4f} after (nats a token)"
    )
