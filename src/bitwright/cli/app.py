"""The command line: one file a command, and one place where errors become a sentence and an exit code."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from bitwright import __version__
from bitwright.cli.bench import bench
from bitwright.cli.chat import chat
from bitwright.cli.compare import compare
from bitwright.cli.demo import demo
from bitwright.cli.doctor import doctor
from bitwright.cli.evaluate import evaluate
from bitwright.cli.export import export
from bitwright.cli.frontier import frontier
from bitwright.cli.generate import generate
from bitwright.cli.info import info
from bitwright.cli.quantize import quantize
from bitwright.cli.recipes import recipes
from bitwright.cli.train import train
from bitwright.cli.tune import tune
from bitwright.errors import BitwrightError

app = typer.Typer(
    name="bitwright",
    help="Turns a trained language model into a 1-4 bit model that is really that small, and says what was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    quantize, frontier, tune, train, evaluate, compare, bench, info, generate, chat, export, recipes, doctor,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.command(hidden=True)(demo)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the tool itself."""


options.__doc__ = None  # the help of `app` is shown instead


def main() -> None:
    """The console entry. Wrong use exits with 2, failed work with 1, both with one sentence; bugs show a traceback."""
    try:
        app(prog_name="bitwright")
    except BitwrightError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"the disk is full{where}: make room and run the same command again.", BitwrightError.exit_code)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
