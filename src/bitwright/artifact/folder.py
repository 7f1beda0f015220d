"""Places on disk: one writer at a time, whole folders or none, and clear words when the disk refuses."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.errors import BadArtifact, BadInput, Refused


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into one sentence (`BadInput`)."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(f"cannot write {path}: {reason}; make room there or choose another place.") from error


def require_place(file: Path, option: str) -> None:
    """`BadInput`, before any work, unless a file can be written there; missing folders above it are made later."""
    with writing(file):
        taken = file.is_dir()
    if taken:
        raise BadInput(f"{option} {file} is a folder: give the name of a file.")
    _require_open(file, f"{option} {file}")


def _require_open(path: Path, told: str) -> None:
    with writing(path):
        above = next(folder for folder in path.absolute().parents if folder.exists())
        open_ = above.is_dir() and os.access(path if path.is_file() else above, os.W_OK)
    if not open_:
        raise BadInput(f"{told}: nothing can be written in {above}; choose another place.")


@contextmanager
def writing_to(file: Path) -> Iterator[Path]:
    """Where to write a file that appears whole or not at all, in a folder that is made if there is none."""
    part = file.with_name(f"{file.stem}.partial{file.suffix}")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a missing permission, an input error and the like into one sentence (`BadArtifact`)."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadArtifact(f"cannot read {error.filename or path}: {reason}; copy the artifact again.") from error


def sync(path: Path) -> None:
    """Flushes a file or the entries of a folder to the disk, so that a power cut cannot undo a rename."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def beside(out: Path, suffix: str) -> Path:
    """OUT + suffix, in the same folder: on the same file system, so that a rename is atomic."""
    return Path(os.path.abspath(out) + suffix)  # noqa: PTH100 (a symbolic link must not be followed)


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Holds `OUT.lock` beside `out`; a second process is refused. The kernel frees it when the process dies."""
    path = beside(out, ".lock")
    fd = _locked(path, out)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _locked(path: Path, out: Path) -> int:
    """Descriptor of the locked file; a file that its owner unlinked meanwhile is not the lock: try again."""
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise Refused(f"another process is writing {out}: wait for it to end or choose another place.") from None
        except FileNotFoundError:
            pass
        os.close(fd)


def require_free(out: Path) -> None:
    """`Refused` unless `out` does not exist or is an empty folder, `BadInput` where no folder can be made."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise Refused(f"{out} already exists: choose another place or remove it first.")
    _require_open(out, str(out))


@contextmanager
def draft(out: Path) -> Iterator[Path]:
    """A new folder `OUT.partial` that becomes `out` when the body succeeds and is removed when it fails.

    What an earlier process left there is removed. `Refused` if `out` is taken, before and after the body.
    """
    require_free(out)
    partial = beside(out, ".partial")
    with writing(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
        require_free(out)
        with writing(out):
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            partial.rename(beside(out, ""))  # OUT may lead through a folder that is not there
            sync(partial.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
