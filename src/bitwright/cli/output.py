"""What people and machines see: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitwright.errors import BadInput

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processor threads; default: all this process may use.")
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Use only the first 40MB, say, of a file in blocks; default: all of it."),
]
BARE = 100_000  # a size without a unit is in MB below this
SkipExperts = Annotated[
    bool, typer.Option("--skip-experts", help="Tokens that hardly need an expert do without it (mixtures of experts).")
]
Step = Callable[[str, int, int | None], None]
"""Called with the name of a stage, steps done, and steps in all (None: not known)."""

PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal


def note(text: str) -> None:
    """A line for people that is not part of the result."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON object of a command; numbers that JSON cannot spell are null."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people: the first column to the left, all others to the right. Lines are never cut."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        first, *others = (
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *others)).rstrip())


@contextmanager
def quiet_stdout(wanted: bool) -> Iterator[None]:
    """While a machine reads stdout, what libraries print there goes to stderr."""
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Turns Ctrl-C into one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"stopped: {advice}")
        raise typer.Exit(130) from None


@contextmanager
def progress() -> Iterator[Step]:
    """A bar with the remaining time on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines().step
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def step(what: str, done: int, of: int | None) -> None:
            if what not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, visible=False)
                tasks[what] = bars.add_task(what, total=of)
            text = what if of in (None, 1) else f"{what} {done}/{of}"
            bars.update(tasks[what], completed=done, total=of if of != 1 else None, description=text)

        yield step


class _Lines:
    """Progress as lines: every new stage, then one line each `PLAIN_EVERY` seconds."""

    def __init__(self) -> None:
        self.stage = ""
        self.began = self.told = time.monotonic()
        self.first = 0

    def step(self, what: str, done: int, of: int | None) -> None:
        now = time.monotonic()
        if what != self.stage:
            self.stage, self.began, self.told, self.first = what, now, now, done
            note(what if of in (None, 1) else f"{what}: {of}")
        elif now - self.told >= PLAIN_EVERY and of and done > self.first:
            self.told = now
            left = (now - self.began) / (done - self.first) * (of - done)
            note(f"{what}: {done} of {of}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds for people: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def megabytes(count: float) -> str:
    """Bytes as millions: "45.2 MB"."""
    return f"{count / 1e6:,.1f} MB"


def parse_size(text: str | None, option: str) -> int | None:
    """Bytes of "45MB", "45" (also MB), "1.2GB", "500kB" or "45000000B"; a bare number that can only mean bytes is
    refused."""
    if text is None:
        return None
    written = text.strip().lower()
    number = written.removesuffix("b")
    unit = {"k": 1e3, "m": 1e6, "g": 1e9}.get(number[-1:])
    bare = number == written and unit is None
    try:
        value = float(number[:-1] if unit else number)
        if bare and value >= BARE:
            raise BadInput(f"{option} {text} would be {text} MB: give a unit, {text}B or 45MB say.")
        return round(value * (unit or (1e6 if bare else 1)))
    except (ValueError, OverflowError):
        raise BadInput(f"{option} {text}: give a size such as 45MB or 1.2GB.") from None
