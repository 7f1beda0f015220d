"""Finished windows on disk, so that an interruption loses at most the window in work."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from bitwright.errors import BadInput
from bitwright.evaluate.scores import TokenScores
from bitwright.spec import fingerprint

VERSION = 4
"""Raised whenever scores of the same model and window would come out otherwise."""


class WindowCache:
    """Scores of one model (beside one parent) by window, one small file each.

    A window is found by the hash of its tokens: the first 10 windows measured today count tomorrow among all 148.
    """

    def __init__(self, folder: Path, model: str, parent: str | None) -> None:
        self.folder = folder / fingerprint({"version": VERSION, "model": model, "parent": parent})[:32]

    def load(self, window: Tensor) -> tuple[TokenScores, float] | None:
        """Scores and the seconds they took, or None if this window is not done."""
        path = self._path(window)
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file) as stored:
                found = {key: stored[key] for key in stored.files}
            seconds = float(found.pop("seconds"))
            return TokenScores(**{"kl": None, **found}), seconds
        except (BadZipFile, ValueError, KeyError, TypeError, EOFError):
            raise BadInput(f"{path} is not a window that bitwright has measured; delete it.") from None

    def store(self, window: Tensor, scores: TokenScores, seconds: float) -> None:
        """Write one window; it is there whole or not at all."""
        path = self._path(window)
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = {key: column for key, column in vars(scores).items() if column is not None}
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, seconds=np.float64(seconds), **columns)
        part.replace(path)

    def _path(self, window: Tensor) -> Path:
        return self.folder / f"{sha256(window.numpy().tobytes()).hexdigest()[:32]}.npz"
