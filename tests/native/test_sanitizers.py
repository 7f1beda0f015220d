"""Kernels and engine under AddressSanitizer and UndefinedBehaviorSanitizer, built here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_read_or_write_goes_astray(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs cmake and the sources")
    options = ["-DBITWRIGHT_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([cmake, "-S", str(ROOT), "-B", str(tmp_path), *options], check=True, capture_output=True)
    subprocess.run([cmake, "--build", str(tmp_path), "--target", "sanitized", "--parallel", "2"], check=True)
    done = subprocess.run([tmp_path / "sanitized"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nall is well\n")
