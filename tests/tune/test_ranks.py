"""Two processes of torchrun train as one does: the same losses, the same bytes, and they go on together."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.engine.job import Job
from bitwright.engine.run import quantize
from bitwright.learning import Learning
from bitwright.tune.ranks import Ranks

# Trains on two sequences a step; argv: artifact, out, text, step after which the process is killed (-1: none).
PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
from bitwright.learning import Learning
from bitwright.tune import course, run
from bitwright.tune.ranks import Ranks
from bitwright.tune.settings import Tuning
artifact, out, text, last = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
course.SAVE_EVERY = 0.0
run.verified = lambda folder, contents, tensor, manifest: manifest
losses = {}
def told(step, loss):
    losses[step] = loss
    if step == last:
        Ranks().wait()
        os._exit(7)
learning = Learning(batch=2, length=32, rate=0.02, hidden=0.1, encode_every=2)
run.tune(Tuning(artifact=artifact, out=out, data=(text,), steps=6, learning=learning, threads=1), told=told)
if Ranks().leads:
    Path(f"{out}.losses").write_text(json.dumps(losses))
"""


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    many = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port())]
    command = [sys.executable, *many, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def port() -> int:
    """A free one, as far as one can know."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("last", [-1, pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_give_the_losses_and_bytes_of_one(
    packed: Path, text: Path, tmp_path: Path, run: Callable[..., Any], last: int
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    learning = Learning(batch=2, length=32, rate=0.02, hidden=0.1, encode_every=2)
    one: dict[int, float] = {}
    run(tmp_path / "by-1", one.__setitem__, learning=learning, threads=1)
    for stop in sorted({last, -1}, reverse=True):
        done = launch(2, program, packed, tmp_path / "by-2", text, stop)
        assert (done.returncode == 0) == (stop < 0), done.stderr[-3000:]
    assert digest(tmp_path / "by-1") == digest(tmp_path / "by-2")
    two = json.loads((tmp_path / "by-2.losses").read_text())
    assert two == {str(step): loss for step, loss in one.items() if step >= last}  # without those before the stop


@pytest.mark.slow
def test_what_tokens_mix_belongs_to_the_owner_of_the_weight(
    tiny_model: Path, text: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """Layers of BinaryMoS have four tensors each, of which all processes need the owner's."""
    mixed, program = tmp_path / "mixed", tmp_path / "program.py"
    quantize(Job(model=str(tiny_model), out=mixed, recipe="binary-mos", data=text, tokens=512, length=64, threads=1))
    program.write_text(PROGRAM)
    learning = Learning(batch=2, length=32, rate=0.02, hidden=0.1, encode_every=2)
    run(tmp_path / "by-1", artifact=mixed, learning=learning, threads=1)
    done = launch(2, program, mixed, tmp_path / "by-2", text, -1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digest(tmp_path / "by-1") == digest(tmp_path / "by-2") != digest(mixed)


def test_one_process_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks()
    assert ranks.leads
    assert ranks.share([1, 2, 3]) == ranks.joined([1, 2, 3]) == [1, 2, 3]
    assert ranks.merged({"a": 1}) == {"a": 1}


def test_lists_are_shared_out_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    parts = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "count", 3)
        monkeypatch.setattr(ranks, "rank", rank)
        parts.append(ranks.share(list(range(8))))
    assert [item for part in parts for item in part] == list(range(8))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
