"""`bitwright evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bitwright.artifact.folder import writing_to
from bitwright.cli.generate import EngineOption
from bitwright.cli.output import (
    Budget,
    Json,
    SkipExperts,
    Threads,
    interruptible,
    note,
    parse_size,
    print_json,
    progress,
    quiet_stdout,
)

if TYPE_CHECKING:
    from bitwright.cli.subject import Subject

Activations = Annotated[
    Literal["int8", "float"], typer.Option(help="int8: what users get; float: activations are not rounded.")
]
TextFile = Annotated[Path | None, typer.Option(help="Text to measure on; default: one that comes with Python.")]
Windows = Annotated[int | None, typer.Option(min=1, help="How many windows of 2048 tokens; default: all.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw a picture: FILE.png or FILE.svg.")]

KEPT = "finished windows are kept; run the same command again and it goes on."


def evaluate(
    path: Annotated[str, typer.Argument(help="A folder that bitwright wrote, or a float model.")],
    against: Annotated[
        str | None, typer.Option(help="Float model to compare with; default: the one it was made from.")
    ] = None,
    text: TextFile = None,
    windows: Windows = None,
    tasks: Annotated[str | None, typer.Option(help="Zero-shot tasks, by comma: lambada,piqa,arc_easy,...")] = None,
    tasks_data: Annotated[Path | None, typer.Option(help="Folder with the files of the tasks.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task; default: all.")] = None,
    activations: Activations = "int8",
    engine: EngineOption = "auto",
    budget: Budget = None,
    skip_experts: SkipExperts = False,
    recalibrate: Annotated[bool, typer.Option(help="Also fit the temperature that repairs the confidence.")] = False,
    plot: Plot = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure perplexity, distance to the float model, honesty of the probabilities, and tasks."""
    from bitwright.cli.generate import set_threads
    from bitwright.cli.measure import check_plot, measure, print_measured, protocol_line, recalibration
    from bitwright.cli.subject import open_subject, parent_of

    set_threads(threads)
    check_plot(plot)
    subject = open_subject(path, activations, engine, parse_size(budget, "--budget"), skip_experts)
    if against is None:
        reference, told = parent_of(subject)
    else:
        reference, told = open_subject(against), f"compared with {against}"
    with interruptible(KEPT), quiet_stdout(json):
        with progress() as step:
            found = measure([subject], reference, text, windows, step)
        scores = _tasks(subject, tasks, tasks_data, limit) if tasks else None
        repair = recalibration(subject, text, windows) if recalibrate else None
    measured = found[subject.name]
    if plot is not None:
        from bitwright.report.charts import reliability

        with writing_to(plot) as part:
            reliability({name: row.result.totals for name, row in found.items()}, part, str(measured.result.protocol))
    repaired = {"recalibration": asdict(repair)} if repair else {}
    if json:
        print_json({**measured.to_json(), "against": told, "tasks": scores, "activations": activations, **repaired})
        return
    rows = list(found.values())
    print_measured(rows, protocol_line(rows, activations))
    _print_honesty(measured.to_json())
    if repair is not None:
        print(f"temperature {repair.temperature:.3f} takes ECE from {repair.ece_before:.4f} to {repair.ece_after:.4f}")
    print(told)
    for name, score in (scores or {}).items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in score.items()))
    if plot is not None:
        note(f"picture: {plot}")


def _tasks(subject: Subject, names: str, data: Path | None, limit: int | None) -> dict[str, dict[str, Any]]:
    from bitwright.evaluate.tasks import run_tasks

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    note(f"tasks: {', '.join(wanted)}")
    return run_tasks(
        subject.speaker().module,
        subject.tokenizer(),
        wanted,
        data=data,
        limit=limit,
        max_positions=subject.positions or 2048,
    )


def _print_honesty(told: dict[str, Any]) -> None:
    ece = "from too few tokens" if told["ece"] is None else f"{told['ece']:.4f}"
    leaning = "over-confident" if told["balance"] < 0 else "under-confident"
    print(f"Brier {told['brier']:.4f}, ECE {ece}, balance {told['balance']:+.4f} ({leaning})")
