"""The levels for Arm, cross-compiled and run by an emulator: every kernel and the engine, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-I", str(ROOT / "csrc"))
LEVELS = {"neon_dot": "-march=armv8.2-a+dotprod", "neon_i8mm": "-march=armv8.2-a+dotprod+i8mm"}


@pytest.mark.slow
def test_arm_levels_give_the_bits_of_the_others(tmp_path: Path) -> None:
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    if not (ROOT / "csrc").exists():
        pytest.skip("needs the sources")
    sources = [f for f in (*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/engine/*.cpp")) if not f.name.startswith("bind")]
    sources += [ROOT / "csrc/kernels/portable.cpp", ROOT / "tests/native/sanitized.cpp"]
    built = dict.fromkeys(sources, ()) | {ROOT / f"csrc/kernels/{name}.cpp": (flag,) for name, flag in LEVELS.items()}
    levels = [f"-DBITWRIGHT_{name.upper()}" for name in LEVELS]
    for i, (source, flags) in enumerate(built.items()):
        command = [COMPILER, *FLAGS, *levels, *flags, "-c", str(source), "-o", str(tmp_path / f"{i}.o")]
        subprocess.run(command, check=True)
    program = tmp_path / "program"
    objects = [str(tmp_path / f"{i}.o") for i in range(len(built))]
    subprocess.run([COMPILER, "-static", *objects, "-o", str(program), "-pthread"], check=True)
    done = subprocess.run([EMULATOR, "-cpu", "max", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "levels: neon-i8mm neon-dot portable\nall is well\n"
