"""`bitwright export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bitwright.cli.output import Json, interruptible, megabytes, print_json


def export(
    path: Annotated[Path, typer.Argument(help="A folder that bitwright wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write.")],
    to: Annotated[Literal["dense"], typer.Option(help="dense: a plain float32 folder for any tool.")] = "dense",
    json: Json = False,
) -> None:
    """Write a folder that other tools read."""
    from bitwright.export.dense import export_dense

    with interruptible("nothing was written."):
        written = export_dense(path, out)
    if json:
        print_json({"path": str(out), "to": to, "file_bytes": written})
    else:
        print(f"{out}: {megabytes(written)} of float32 weights")
