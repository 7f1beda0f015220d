import subprocess
import sys
from pathlib import Path

import pytest

from bitwright.artifact.folder import draft, lock, writing, writing_to
from bitwright.errors import BadInput, Refused

HOLD = """
import sys
from pathlib import Path
from bitwright.artifact.folder import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def held(out: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str], kill: bool) -> None:
    if kill:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("kill", [False, True])
def test_second_process_is_refused_until_the_first_ends(tmp_path, kill):
    out = tmp_path / "deep" / "out"
    other = held(out)
    try:
        with pytest.raises(Refused, match="another process is writing"), lock(out):
            pass
    finally:
        end(other, kill)
    with lock(out):
        pass
    assert list(out.parent.iterdir()) == []


def test_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), lock(tmp_path / "out"):
        raise RuntimeError
    with lock(tmp_path / "out"):
        pass


def test_draft_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def interrupted():
        with draft(out) as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with draft(out) as folder:
        (folder / "a").write_text("2")
        assert not out.exists()
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("a", "2")]
    assert list(tmp_path.iterdir()) == [out]


def test_draft_replaces_an_empty_folder_and_what_a_killed_process_left(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").write_text("")
    with draft(out) as folder:
        (folder / "new").write_text("")
    assert [p.name for p in out.iterdir()] == ["new"]


@pytest.mark.parametrize("taken", ["file", "folder", "link"])
def test_out_that_exists_is_refused(tmp_path, taken):
    out = tmp_path / "out"
    if taken == "file":
        out.write_text("mine")
    elif taken == "folder":
        out.mkdir()
        (out / "mine").write_text("")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused, match="already exists"), draft(out):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_out_that_appears_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Refused, match="already exists"), draft(out):
        out.write_text("mine")
    assert out.read_text() == "mine"


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="nothing can be written in"), draft(tmp_path / "file" / "out"):
        pass
    with pytest.raises(BadInput, match="cannot write"), writing(tmp_path):
        (tmp_path / "none" / "a").write_text("")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    place = tmp_path / "new" / "plan.json"
    with writing_to(place) as part:
        part.write_text("whole")

    def cut() -> None:
        with writing_to(place) as part:
            part.write_text("ha")
            raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="cannot write"):
        cut()
    assert place.read_text() == "whole"
    assert [path.name for path in place.parent.iterdir()] == ["plan.json"]
