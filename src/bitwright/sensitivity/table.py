"""The sensitivities of a model as a file: measured once, read by every later plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from hashlib import sha256
from inspect import getfile
from pathlib import Path
from typing import Any

from bitwright.artifact.write import write_text
from bitwright.protocols import Format
from bitwright.sensitivity.solved import Losses
from bitwright.spec import Spec, fingerprint, label

OBSERVED_BY = (
    "sensitivity/observe.py",
    "sensitivity/statistics.py",
    "sensitivity/experts.py",
    "calibrate/observe.py",
)
"""Code that decides the statistics of the float model."""
SOLVED_BY = (
    "sensitivity/solved.py",
    "sensitivity/perturb.py",
    "sensitivity/groups.py",
    "sensitivity/measure.py",
    "sensitivity/table.py",
    "solvers/*.py",
    "formats/_*.py",
    "linalg.py",
    "turned.py",
    "rotation.py",
    "groups.py",
)
"""Code that decides the losses of options and the layout of tables, beside the file of the format."""


@dataclass
class Tensor:
    """One linear: the scores that no format enters, and the losses of its options by `key` of the format."""

    block: int
    group: str  # of linears that are measured together
    weights: int
    trace: float  # of the Fisher information of the weight, a token
    curvature: float  # sum over rows and columns of range_r^2 / (24 u_c^2): c of the loss c 4^-bits (BAQ)
    share: float = 1.0  # of all tokens that reach it, less than 1 for experts
    significance: float = 0.0  # of experts: share of uses times share of routing weight ^ 1.5 in its block (MC-MoE)
    whole: dict[str, float] = field(default_factory=dict)  # by `key`: what the whole expert in a format changes in the
    # output of its block (norm over all tokens)
    options: dict[str, Losses] = field(default_factory=dict)


@dataclass
class Table:
    """`tensors` by path; LIM and ZD of every block; `tables`: KL of storing embedding and head in a format, by `key`;
    `measured`: KL of storing a group of tensors in a format, by `key`."""

    identity: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    lim: list[float] = field(default_factory=list)
    zd: list[float] = field(default_factory=list)
    tables: dict[str, float] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write_text(partial, json.dumps(asdict(self), indent=1, sort_keys=True))
        partial.replace(path)


def open_table(folder: Path, identity: dict[str, Any]) -> tuple[Path, Table]:
    """The table of this identity, empty if there is none yet, and its place."""
    path = folder / f"{fingerprint(identity)[:24]}.json"
    if not path.exists():
        return path, Table(identity)
    stored = json.loads(path.read_text())
    tensors = {
        name: Tensor(**{**row, "options": {k: Losses(**v) for k, v in row["options"].items()}})
        for name, row in stored.pop("tensors").items()
    }
    return path, Table(tensors=tensors, **stored)


def identity(model: str, calibration: str, solvers: list[Spec | None]) -> dict[str, Any]:
    """What losses depend on: weights, calibration tokens, solvers (of blocks, of tables) and code."""
    return {**observation(model, calibration), "solvers": solvers, "solved_by": _code(SOLVED_BY)}


def observation(model: str, calibration: str) -> dict[str, Any]:
    """What the statistics of the float model depend on."""
    return {"model": model, "calibration": calibration, "observed_by": _code(OBSERVED_BY)}


def key(fmt: Format) -> str:
    """An option in a table: the format and the state of its code, and of that of the parts it has."""
    files = sorted({getfile(kind) for kind in _types(fmt)})
    return f"{label(fmt)} {' '.join(_file(path)[:8] for path in files)}"


def _types(part: object) -> Iterator[type]:
    yield type(part)
    if is_dataclass(part):
        for inner in (getattr(part, own.name) for own in fields(part)):
            if is_dataclass(inner):
                yield from _types(inner)


# Hashed once: a file that changes while this process runs does not change what the process does.
@cache
def _file(path: str) -> str:
    return sha256(Path(path).read_bytes()).hexdigest()


@cache
def _code(patterns: tuple[str, ...]) -> str:
    root, digest = Path(__file__).parents[1], sha256()
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
