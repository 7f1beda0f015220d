"""What the exact solver lets out."""

from __future__ import annotations

import ctypes
import os

import pytest

from bitwright.allocate import exact


@pytest.mark.skipif(os.name != "posix", reason="finds C's own stdout as POSIX systems have it")
def test_what_the_solver_prints_in_c_does_not_arrive(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stray remark of the library stood before the JSON of a command."""

    def chatty(*args: object, **options: object) -> str:
        ctypes.CDLL(None).puts(b"remark")  # held back by C until it is flushed
        os.write(1, b"remark\n")
        return "result"

    monkeypatch.setattr(exact, "milp", chatty)
    print("before")
    assert exact._milp() == "result"
    print("after", flush=True)
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"
