"""Subjects measured side by side: what `evaluate`, `compare` and `demo` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.artifact.folder import require_place
from bitwright.cli.output import Step
from bitwright.cli.subject import Subject
from bitwright.errors import BadInput, Refused

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.evaluate.result import Result
    from bitwright.evaluate.run import Candidate, Recalibration
    from bitwright.report.tables import Row

SPEED_TOKENS = 24  # generated for a speed, after a prompt of 16
SPEED_PROMPT = 16
WIDTH = 200  # characters


@dataclass(frozen=True)
class Measured:
    """One subject with its scores and its speed."""

    subject: Subject
    result: Result
    tokens_per_second: float

    @property
    def row(self) -> Row:
        """As a line of a table."""
        from bitwright.report.tables import Row

        return Row.of(self.result, **self._own)

    def to_json(self) -> dict[str, Any]:
        """Stable keys; what was not measured is null."""
        return {**self.result.to_json(), **self._own}

    @property
    def _own(self) -> dict[str, Any]:
        return {
            "file_bytes": self.subject.file_bytes,
            "stored_bits_per_weight": self.subject.stored_bits,
            "tokens_per_second": self.tokens_per_second,
        }


def measure(
    subjects: Sequence[Subject], reference: Subject | None, text: Path | None, limit: int | None, step: Step
) -> dict[str, Measured]:
    """Every subject on the same windows of a text; finished windows are kept for the next time."""
    from bitwright.evaluate.protocol import load_text, prepare
    from bitwright.evaluate.run import compare
    from bitwright.models.cache import cache_folder

    by_name = {subject.name: subject for subject in subjects}
    if len(by_name) < len(subjects):
        raise BadInput("a model is named twice: give every model once.")
    if reference is not None:
        by_name.setdefault(reference.name, reference)
    first = reference or subjects[0]
    positions = [subject.positions for subject in by_name.values() if subject.positions]
    protocol, windows = prepare(
        first.tokenizer(), load_text(text), max_positions=min(positions, default=None), limit=limit
    )
    _one_vocabulary(list(by_name.values()))
    for subject in by_name.values():
        _keep_apart(subject, windows, protocol.text)
    candidates = {name: _candidate(subject) for name, subject in by_name.items()}
    step("windows", 0, len(windows))
    results = compare(
        candidates,
        windows,
        protocol,
        reference=reference.name if reference else None,
        cache=cache_folder() / "windows",
        progress=lambda done, of: step("windows", done, of),
    )
    found = {}
    for name, subject in by_name.items():
        step(f"speed of {name}", 0, None)
        found[name] = Measured(subject, results[name], speed(subject, windows[0].tolist()))
    return found


def _one_vocabulary(subjects: Sequence[Subject]) -> None:
    """`BadInput` before any work where models cannot be held against each other."""
    first, *others = [subject for subject in subjects if subject.vocabulary]
    for other in others:
        if other.vocabulary != first.vocabulary:
            raise BadInput(
                f"{other.name} has {other.vocabulary} tokens in its vocabulary and {first.name} {first.vocabulary}; "
                "only models with one vocabulary compare."
            )


def _keep_apart(subject: Subject, windows: Tensor, text: str) -> None:
    """`Refused` where a subject was calibrated or tuned on what it would be measured on."""
    from bitwright.calibrate.overlap import SHARED, shared

    for done, seen in subject.seen.items():
        part = shared(windows, seen.runs)
        if part > SHARED:
            raise Refused(
                f"{subject.name} was {done} on {seen.data}, and {part:.0%} of that text is in {text}: "
                "measure on another text."
            )


def _candidate(subject: Subject) -> Candidate:
    from bitwright.evaluate.run import Candidate

    return Candidate(lambda: subject.speaker().module, subject.fingerprint, subject.engine)


def recalibration(subject: Subject, text: Path | None, limit: int | None) -> Recalibration:
    """The temperature fitted on the first window, and what it does on the others."""
    from bitwright.evaluate.protocol import load_text, prepare
    from bitwright.evaluate.run import recalibrate

    windows = prepare(subject.tokenizer(), load_text(text), max_positions=subject.positions, limit=limit)[1]
    return recalibrate(subject.speaker().module, windows)


def speed(subject: Subject, ids: list[int]) -> float:
    """Tokens a second while generating: the median of three runs after a short prompt."""
    from bitwright.evaluate.speed import generation_speed

    speaker = subject.speaker()
    return generation_speed(lambda: sum(1 for _ in speaker.tokens(ids[:SPEED_PROMPT], SPEED_TOKENS))).median


def print_measured(rows: Sequence[Measured], told: str) -> None:
    """The table for people, with the protocol below it."""
    from rich.console import Console

    from bitwright.report.tables import terminal

    # Wide enough for any row: a table must not lose digits to the width of a window.
    Console(highlight=False, markup=False, width=WIDTH).print(terminal([row.row for row in rows], told))


def protocol_line(rows: Sequence[Measured], activations: str) -> str:
    """What was measured on, for the foot of a table."""
    native = [row.result.name for row in rows if row.result.engine == "native"]
    engines = f"; compiled engine for {', '.join(native)}" if native else ""
    return f"{rows[0].result.protocol}; {activations} activations{engines}"


def check_plot(path: Path | None) -> None:
    """`BadInput` before any work if a picture cannot be drawn there."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise BadInput(f"--plot {path}: give a name that ends in .png or .svg.")
    if find_spec("matplotlib") is None:
        raise BadInput("pictures need matplotlib: pip install 'bitwright[report]'.")
    require_place(path, "--plot")
