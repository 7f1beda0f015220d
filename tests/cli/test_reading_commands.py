from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from bitwright.runtime import native

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

KEYS = {
    "file_bytes", "stored_bits_per_weight", "perplexity", "windows", "kl_mean", "kl_p99", "top1_agreement", "brier",
    "ece", "balance", "tasks", "tokens_per_second", "peak_rss_bytes", "seconds",
}  # fmt: skip


def test_evaluate_gives_the_stable_keys(cli: Cli, packed: Path, text: Path, tmp_path: Path) -> None:
    told = cli("evaluate", packed, "--text", text, "--windows", 3, "--plot", tmp_path / "p.svg", "--json").json
    assert told.keys() >= KEYS
    assert told["windows"] == 3
    assert told["file_bytes"] == (packed / "model.safetensors").stat().st_size
    assert 0 < told["kl_mean"] < 1
    assert told["protocol"]["window"] == 256
    assert "float model it was made from" in told["against"]
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


def test_float_model_agrees_with_itself(cli: Cli, tiny_model: Path, text: Path) -> None:
    told = cli("evaluate", tiny_model, "--text", text, "--windows", 2, "--json").json
    assert told["kl_mean"] is None
    assert told["stored_bits_per_weight"] == 16
    again = cli("compare", tiny_model, "--text", text, "--windows", 2, "--json").json
    assert again["models"][0]["perplexity"] == told["perplexity"]


def test_dense_export_with_float_activations_is_the_same_model(
    cli: Cli, packed: Path, text: Path, tmp_path: Path
) -> None:
    written = cli("export", packed, "--to", "dense", "-o", tmp_path / "dense", "--json").json
    assert written["file_bytes"] == (tmp_path / "dense" / "model.safetensors").stat().st_size
    one = cli("evaluate", packed, "--text", text, "--activations", "float", "--json").json
    other = cli("evaluate", tmp_path / "dense", "--text", text, "--json").json
    assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-4)  # keys and values have 15 bits


def test_missing_float_model_is_said(cli: Cli, packed: Path, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    away = tiny_model.rename(tiny_model.with_name("away"))
    try:
        told = cli("evaluate", packed, "--text", text, "--windows", 1, "--json").json
    finally:
        away.rename(tiny_model)
    assert told["kl_mean"] is None
    assert "not compared" in told["against"]


def test_compare_writes_table_and_picture(cli: Cli, packed: Path, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    files = ("--plot", tmp_path / "p.png", "--markdown", tmp_path / "t.md")
    told = cli("compare", packed, tiny_model, "--text", text, "--windows", 2, *files)
    assert told.code == 0
    for name in (packed, tiny_model):
        assert str(name) in told.out
        assert f"| {name} |" in (tmp_path / "t.md").read_text()
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_info_accounts_for_every_byte(cli: Cli, packed: Path) -> None:
    told = cli("info", packed, "--check", "--json").json
    assert sum(told["bytes"].values()) == told["file_bytes"]
    for part, bits in told["bits"].items():
        assert sum(bits.values()) == 8 * told["bytes"][part]
    assert sum(row["weights"] for row in told["formats"]) == len(told["weights"]) == 15
    assert all(row["paths"] for row in told["formats"])
    assert told["verification"]["logits"] == "equal in a fresh process"
    assert "lm_head is model.embed_tokens" in cli("info", packed).out


def test_generate_prints_the_text_alone(cli: Cli, packed: Path) -> None:
    said = cli("generate", packed, "--prompt", "Hello", "--max-tokens", 12)
    told = cli("generate", packed, "--prompt", "Hello", "--max-tokens", 12, "--json").json
    assert told["tokens"] == 12
    assert said.out == told["text"] + "\n"
    assert "tokens/s" in said.err


def test_chat_keeps_the_conversation(cli: Cli, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Good day\n\nAnd now?\n/quit\nnever read\n"))
    told = cli("chat", packed, "--system", "Be brief.", "--max-tokens", 4, "--json").json
    roles = [message["role"] for message in told["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in told["messages"] if m["role"] == "user"] == ["Good day", "And now?"]


def test_doctor_names_what_is_there(cli: Cli) -> None:
    told = cli("doctor", "--json").json
    assert told["libraries"]["torch"] == torch.__version__
    assert told["kernels"]["reason"]
    assert told["kernels"]["used"] == (told["kernels"]["level"] is not None)
    assert cli("doctor").code == 0


def test_recipes_are_listed_with_a_line_each(cli: Cli) -> None:
    told = cli("recipes", "--json").json["recipes"]
    assert {"gptq", "pb-llm", "rtn"} <= {row["name"] for row in told}
    assert all(row["summary"].endswith(".") for row in told)


def test_bench_tells_speed_memory_and_kernels(cli: Cli, packed: Path) -> None:
    if not native.available()[0]:
        pytest.skip(native.available()[1])
    told = cli("bench", packed, "--rounds", "1", "--threads", "2", "--json").json
    assert {"isa", "load_ms", "peak_rss_bytes", "roofline_share", "kernels"} <= told.keys()
    assert [row["threads"] for row in told["by_threads"]] == [1, 2]
    for kind in ("decode", "context_1000", "prefill"):
        assert told[kind]["tokens_per_second"] > 0
    assert told["against"] is None
    assert told["gigabytes_per_second"] * 1e9 == pytest.approx(
        told["bytes_per_token"] * told["decode"]["tokens_per_second"]
    )


def test_bench_needs_the_engine(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("bench", tiny_model)
    assert outcome.code == 2
