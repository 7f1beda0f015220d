"""Files that bitwright keeps for the next run: ~/.cache/bitwright, or the folder in BITWRIGHT_CACHE."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bitwright.errors import BadInput


def cache_folder() -> Path:
    """The cache folder, made if missing; `BadInput` if it cannot be."""
    named = os.environ.get("BITWRIGHT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = Path(named) if named else base / "bitwright"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the cache folder {folder} cannot be made ({error.strerror}); set BITWRIGHT_CACHE.") from None
    return folder


def cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder of this name; `build` fills it once, and it appears complete or not at all."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        build(fresh)
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first and its folder is as good
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target
