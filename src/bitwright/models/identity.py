"""Which model is this: hashes of weight files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

FULL = 2 * 1024**3  # bytes: up to here the whole file is hashed
PIECE = 1 << 20
PIECES = 256


def file_digest(path: Path) -> str:
    """SHA-256 of a file; above 2 GiB of its size, its first piece and 256 evenly spaced pieces of 1 MiB.

    Sampled hashes start with "sampled-", so that they are never taken for the hash of the content.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= FULL:
            return hashlib.file_digest(file, "sha256").hexdigest()
        sample = hashlib.sha256(str(size).encode())
        for i in range(PIECES + 1):
            file.seek(i * (size - PIECE) // PIECES)
            sample.update(file.read(PIECE))
        return "sampled-" + sample.hexdigest()


def joint_digest(files: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of several (name, hash) lines in order of names; of a single file its own hash."""
    if len(files) == 1:
        return files[0][1]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
