"""Whatever the README tells people to type must exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/architecture.md")


def blocks(language: str) -> list[str]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    return [
        block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def commands(program: str) -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words[1:] for line in lines if (words := shlex.split(line)) and words[0] == program]


@pytest.mark.parametrize("words", commands("bitwright"), ids=" ".join)
def test_commands_of_the_tool(words: list[str]) -> None:
    from typer.main import get_command

    from bitwright.cli.app import app

    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], list(words[1:]))  # parses every option, runs nothing


@pytest.mark.parametrize("words", commands("./dev"), ids=" ".join)
def test_words_of_the_developer_script(words: list[str]) -> None:
    told = subprocess.run([ROOT / "dev", "help"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^  {words[0]} ", told, re.MULTILINE)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_imports_what_exists(code: str) -> None:
    import bitwright

    tree = ast.parse(code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bitwright"
    }
    assert used
    assert used <= set(bitwright.__all__)


def test_documents_link_only_to_files_that_exist() -> None:
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), (name, target)


def test_map_names_every_room() -> None:
    told = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "src" / "bitwright").iterdir() if (path / "__init__.py").exists()]
    assert rooms
    for room in rooms:
        assert f"`{room}/`" in told
