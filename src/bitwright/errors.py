"""The error tree. The command line prints the message of a `BitwrightError` in one sentence and exits with its code.

BitwrightError            exit 2, wrong use: what, where and what to do
  UnknownName             no part of that name; suggests the nearest
  BadField                a value was made with a field it cannot have
  BadInput                a file, folder, text or model that cannot be used
    BadArtifact           a bitwright folder that is truncated, altered or of another version
  Refused                 the request is clear but cannot be carried out as it stands
    TooFewBits            a method cannot store that little
    Unreachable           no choice of formats keeps all limits at once
WorkFailed                exit 1: the work itself went wrong (non-finite values, failed verification)
Anything else is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def foreign(error: Exception) -> str:
    """What an error of another library says, in one line: its first, and the next where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"no {told}" if isinstance(error, KeyError) else told.rstrip(":.")


class BitwrightError(Exception):
    """Wrong use: the message says what, where and what to do."""

    exit_code = 2


class UnknownName(BitwrightError):
    """No part of that name exists; the message suggests the nearest one."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"no {what} is called {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class BadField(BitwrightError):
    """A value was made with a field it cannot have."""

    def __init__(self, owner: object, field: str, value: object, advice: str) -> None:
        name = owner if isinstance(owner, str) else type(owner).__name__
        super().__init__(f"{name}.{field} = {value!r}: {advice}.")


class BadInput(BitwrightError):
    """A file, folder, text or model that cannot be used."""


class BadArtifact(BadInput):
    """A bitwright folder that is truncated, altered or of another version."""


class Refused(BitwrightError):
    """The request is clear but cannot be carried out as it stands."""


class TooFewBits(Refused):
    """A method cannot store that little."""


class Unreachable(Refused):
    """No choice of formats keeps all limits at once."""


class WorkFailed(BitwrightError):
    """The work itself went wrong: non-finite values, a failed verification."""

    exit_code = 1
