"""Finished parts of a run, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bitwright.artifact.folder import beside, writing
from bitwright.artifact.read import load_block
from bitwright.artifact.write import save_block, write_text
from bitwright.errors import BadArtifact, BadInput, Refused
from bitwright.spec import fingerprint


class Journal:
    """A folder `OUT.journal`: `run.json` says what run it belongs to, one safetensors file holds each finished part.

    A part is written whole or not at all; its SHA-256 is kept and checked when it is read again.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.folder = beside(out, ".journal")
        self.identity = dict(identity)
        self.fingerprint = fingerprint(self.identity)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "run.json"
        if path.exists():
            self._compare(path)
        else:
            self._write("run.json", self.identity)

    def _compare(self, path: Path) -> None:
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise BadInput(f"{path} is damaged: remove {self.folder} to start again.") from None
        changed = sorted(k for k in before.keys() | self.identity.keys() if before.get(k) != self.identity.get(k))
        if changed:
            told = "; ".join(f"{k} was {_short(before.get(k))}, now {_short(self.identity.get(k))}" for k in changed)
            raise Refused(
                f"{self.folder} holds an unfinished run with other settings ({told}): "
                "repeat that command to finish it, or remove the folder to start again."
            )

    def get(self, part: str) -> dict[str, Tensor] | None:
        """The tensors of a finished part, mapped; None if it is not finished.

        A damaged part, or one that another run left behind, counts as unfinished.
        """
        path, note = self.folder / f"{part}.safetensors", self.folder / f"{part}.json"
        if not (path.exists() and note.exists()):
            return None
        try:
            told = json.loads(note.read_text())
            return load_block(path, told["sha256"]) if told["run"] == self.fingerprint else None
        except (BadArtifact, ValueError, KeyError):
            return None

    def notes(self, part: str) -> dict[str, Any]:
        """What was recorded with a finished part."""
        found: dict[str, Any] = json.loads((self.folder / f"{part}.json").read_text())["notes"]
        return found

    def put(self, part: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Record a finished part; the note is written last and makes it count."""
        sha256 = save_block(self.folder / f"{part}.safetensors", tensors)
        self._write(f"{part}.json", {"run": self.fingerprint, "sha256": sha256, "notes": dict(notes)})

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        """A file that appears whole or not at all."""
        partial = self.folder / f"{name}.partial"
        write_text(partial, json.dumps(data, indent=2, sort_keys=True))
        partial.replace(self.folder / name)

    def remove(self) -> None:
        """The run is finished: its files are in the artifact."""
        # What says whose parts these are goes last.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "run.json"):
            path.unlink()
        self.folder.rmdir()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
