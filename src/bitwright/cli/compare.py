"""`bitwright compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.artifact.folder import require_place, writing_to
from bitwright.cli.evaluate import KEPT, Activations, Plot, TextFile, Windows
from bitwright.cli.generate import EngineOption
from bitwright.cli.output import Json, Threads, interruptible, note, print_json, progress, quiet_stdout


def compare(
    paths: Annotated[list[str], typer.Argument(help="Folders that bitwright wrote, and float models.")],
    text: TextFile = None,
    windows: Windows = None,
    activations: Activations = "int8",
    engine: EngineOption = "auto",
    plot: Plot = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure several models on the same windows: one table, one picture.

    The first float model among them is what the others are held against; without one, the float model that the
    first was made from.
    """
    from bitwright.cli.generate import set_threads
    from bitwright.cli.measure import check_plot, measure, print_measured, protocol_line
    from bitwright.cli.subject import open_subject, parent_of

    set_threads(threads)
    check_plot(plot)
    if markdown is not None:
        require_place(markdown, "--markdown")
    subjects = [open_subject(path, activations, engine) for path in paths]
    reference = next((subject for subject in subjects if not subject.packed), None)
    told = f"compared with {reference.name}" if reference else ""
    if reference is None:
        reference, told = parent_of(subjects[0])
    with interruptible(KEPT), quiet_stdout(json), progress() as step:
        found = measure(subjects, reference, text, windows, step)
    rows = list(found.values())
    foot = protocol_line(rows, activations)
    if plot is not None:
        from bitwright.report.charts import quality_against_bytes

        with writing_to(plot) as part:
            quality_against_bytes([row.row for row in rows], part, foot, reference.name if reference else None)
    if markdown is not None:
        from bitwright.report import tables

        with writing_to(markdown) as part:
            part.write_text(tables.markdown([row.row for row in rows], foot), encoding="utf-8")
    if json:
        print_json({"models": [row.to_json() for row in rows], "against": told, "activations": activations})
        return
    print_measured(rows, foot)
    print(told)
    for file in (plot, markdown):
        if file is not None:
            note(f"written: {file}")
