"""What may import what, and what `--help` may cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = """
import sys
from bitwright.cli.app import main
for line in {lines!r}:
    sys.argv = ["bitwright", *line.split()]
    try:
        main()
    except SystemExit as exit:
        assert not exit.code, line
heavy = {{"torch", "transformers", "numpy", "matplotlib"}} & sys.modules.keys()
assert not heavy, heavy
"""
COMMANDS = (
    "quantize", "frontier", "tune", "train", "evaluate", "compare", "bench", "info",
    "generate", "chat", "export", "recipes", "doctor", "demo",
)  # fmt: skip


def test_contracts_between_rooms_hold() -> None:
    pytest.importorskip("importlinter")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_and_lists_do_not_pay_for_torch() -> None:
    lines = ["--help", "--version", "recipes", "recipes --json", *(f"{command} --help" for command in COMMANDS)]
    code = LIGHT.format(lines=lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_command_is_a_file_of_its_name() -> None:
    from typer.main import get_command

    from bitwright.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    for name in commands:
        assert (ROOT / "src" / "bitwright" / "cli" / f"{name}.py").is_file()
        assert "json" in {parameter.name for parameter in commands[name].params} or name == "demo"
