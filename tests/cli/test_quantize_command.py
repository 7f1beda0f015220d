from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


def test_result_is_what_was_planned(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    what = ("quantize", tiny_model, "--recipe", "rtn", "--bits", "3.5", "--json")
    plan = cli(*what, "--dry-run").json
    assert not list(tmp_path.iterdir())
    done = cli(*what, "-o", tmp_path / "out").json
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert plan["file_bytes"] == done["file_bytes"] == size
    assert plan["stored_bits_per_weight"] == done["stored_bits_per_weight"] <= 3.5
    assert sum(plan["bits"].values()) == sum(sum(w["bits"].values()) for w in plan["weights"] if w["part"] == "block")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        for weight in plan["weights"]:
            stored = [file.get_tensor(key) for key in file.keys() if key.startswith(weight["name"] + ".")]  # noqa: SIM118
            assert sum(t.nbytes for t in stored) == weight["bytes"] == sum(weight["bits"].values()) / 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {"seconds", "peak_rss_bytes", "sha256", "unseen_experts", "layer_errors"} <= done.keys()
    assert len(done["layer_errors"]) == 14


def test_dry_run_for_people_folds_equal_blocks(cli: Cli, tiny_model: Path) -> None:
    told = cli("quantize", tiny_model, "--recipe", "rtn", "--dry-run").out
    rows = [line.split() for line in told.splitlines() if line.startswith("model.layers.*.mlp.down_proj")]
    assert [row[1:3] for row in rows] == [["2", "64x96"]]
    assert "stored bits a weight" in told


def test_largest_that_fits(cli: Cli, tiny_model: Path) -> None:
    for size in (0.045, 0.06):
        plan = cli("quantize", tiny_model, "--recipe", "rtn", "--target-size", size, "--dry-run", "--json").json
        assert 0.9 * size * 1e6 < plan["file_bytes"] <= size * 1e6


def test_settings_reach_the_parts(cli: Cli, tiny_model: Path) -> None:
    options = ("--set", "format.group=none", "--set", "embedding.bits_per_code=4")
    plan = cli("quantize", tiny_model, "--recipe", "rtn", *options, "--dry-run", "--json").json
    assert [f["bits_per_code"] for f in plan["formats"]] == [4, 4]
    assert [f["group"] for f in plan["formats"]] == [64, None]


def test_caution_is_said(cli: Cli, tiny_model: Path) -> None:
    told = cli("quantize", tiny_model, "--recipe", "rtn", "--bits", "2.5", "--dry-run", "--json").json
    assert "2 bits" in told["caution"]


def test_gptq_for_people(cli: Cli, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    sizes = ("--tokens", "256", "--length", "64", "--data", text)
    done = cli("quantize", tiny_model, "--bits", "3.5", *sizes, "-o", tmp_path / "out")
    assert done.code == 0
    assert "about" in done.err
    assert "blocks: 2" in done.err
    lines = done.out.splitlines()
    assert lines[0].startswith(str(tmp_path / "out"))
    assert any(line.startswith("sha256 ") for line in lines)
    assert "largest relative output errors" in done.out


def test_several_texts(cli: Cli, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    sizes = ("--tokens", "256", "--length", "64", "--data", text, "--data", other)
    told = cli("quantize", tiny_model, "--bits", "3.5", *sizes, "-o", tmp_path / "out", "--json")
    assert told.code == 0
    manifest = json.loads((tmp_path / "out" / "bitwright.json").read_text())
    assert manifest["calibration"]["data"] == f"{text.name} + other.txt"


def test_interruption_says_how_to_go_on(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitwright.engine.run.quantize", interrupted)
    stopped = cli("quantize", tiny_model, "--recipe", "rtn", "-o", tmp_path / "out", "--json")
    assert stopped.code == 130
    assert stopped.out == ""
    assert stopped.err.splitlines()[-1] == "stopped: run the same command again and it goes on where it was."


def test_frontier_for_machines_and_people(cli: Cli, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    what = ("frontier", tiny_model, "--points", 3, "--tokens", "256", "--length", "64", "--data", text)
    told = cli(*what, "--json", "--plot", tmp_path / "f.svg").json
    assert [row["file_bytes"] for row in told["points"]] == sorted(row["file_bytes"] for row in told["points"])
    assert "predicted KL divergence" in (tmp_path / "f.svg").read_text()
    shown = cli(*what).out.splitlines()
    assert len(shown) == 1 + len(told["points"])
    assert shown[0].split()[:2] == ["file", "MB"]
