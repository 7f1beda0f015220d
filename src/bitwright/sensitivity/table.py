"""The sensitivities of a model as a file: measured once, read by every later plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitwright.artifact.write import write_text
from bitwright.sensitivity.solved import Losses
from bitwright.spec import Spec, fingerprint

SOURCES = ("sensitivity", "solvers", "formats", "partitions", "linalg.py", "groups.py")
"""Code that decides the numbers."""


@dataclass
class Tensor:
    """One linear: the scores that no format enters, and the losses of its options by name of the format."""

    block: int
    weights: int
    trace: float  # of the Fisher information of the weight, a token
    curvature: float  # sum over rows and columns of range_r^2 / (24 u_c^2): c of the loss c 4^-bits (BAQ)
    options: dict[str, Losses] = field(default_factory=dict)


@dataclass
class Table:
    """`tensors` by path; of every block its LIM and ZD; `tables`: KL of storing embedding and head in a format;
    `corrections`: measured KL over predicted, by group of tensors and format."""

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


def identity(model: str, calibration: str, solver: Spec) -> dict[str, Any]:
    """What the numbers depend on: weights, calibration tokens, solver and code."""
    return {"model": model, "calibration": calibration, "solver": solver, "code": _code()}


def _code() -> str:
    root = Path(__file__).parents[1]
    files = [path for name in SOURCES for path in ([root / name] if name.endswith(".py") else (root / name).glob("*.py"))]
    digest = sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
