"""Wrong use is one sentence on stderr and exit code 2; nothing is left behind."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from bitwright.cli.output import parse_size
from bitwright.errors import BadInput

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Outcome


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in errors[0]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, free to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_missing_folder(cli: Cli, tmp_path: Path) -> None:
    refused(cli("quantize", tmp_path / "none", "-o", tmp_path / "out"), str(tmp_path / "none"))


def test_empty_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(cli("quantize", tmp_path / "empty", "-o", tmp_path / "out"), "empty")


def test_near_name_of_a_packaged_model(cli: Cli, tmp_path: Path) -> None:
    refused(cli("quantize", "smolm2", "-o", tmp_path / "out"), "Did you mean 'smollm2'?")


def test_truncated_weights(cli: Cli, copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(cli("quantize", copy, "--recipe", "rtn", "-o", tmp_path / "out"), "model.safetensors")


def test_nan_weight_is_named(cli: Cli, copy: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(copy / "model.safetensors")
    tensors[name][3, 4] = torch.nan
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(cli("quantize", copy, "--recipe", "rtn", "-o", tmp_path / "out"), name, "NaN")
    assert not (tmp_path / "out").exists()


def test_unknown_recipe(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    refused(cli("quantize", tiny_model, "--recipe", "pbllm", "-o", tmp_path / "out"), "Did you mean 'pb-llm'?")


@pytest.mark.parametrize("bits", ["0", "-3", "0.4"])
def test_impossible_bits(cli: Cli, tiny_model: Path, tmp_path: Path, bits: str) -> None:
    refused(cli("quantize", tiny_model, "--bits", bits, "-o", tmp_path / "out"), bits)


def test_impossible_size(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    refused(cli("quantize", tiny_model, "--target-size", "0.001", "-o", tmp_path / "out"), "smallest file")


def test_bits_and_size_together(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    both = ("--bits", "3.5", "--target-size", "1")
    refused(cli("quantize", tiny_model, *both, "-o", tmp_path / "out"), "--bits", "--target-size")


@pytest.mark.parametrize(
    ("assignment", "told"),
    [("solver.dampnig=0.1", "damping"), ("solver.damping", "part.field=value"), ("format.group=fifty", "group")],
)
def test_settings(cli: Cli, tiny_model: Path, tmp_path: Path, assignment: str, told: str) -> None:
    refused(cli("quantize", tiny_model, "--set", assignment, "-o", tmp_path / "out"), told)


def test_no_place_to_write(cli: Cli, tiny_model: Path) -> None:
    refused(cli("quantize", tiny_model), "-o OUT")


def test_place_is_taken(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    refused(cli("quantize", tiny_model, "-o", tmp_path / "out"), "exists")
    assert (tmp_path / "out" / "letter.txt").read_text() == "mine"


def test_calibration_text_too_short(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    refused(cli("quantize", tiny_model, "--data", tmp_path / "short.txt", "-o", tmp_path / "out"), "tokens")


def test_evaluation_text_too_short(cli: Cli, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    refused(cli("evaluate", packed, "--text", tmp_path / "short.txt"), "10 tokens", "256")


def test_evaluation_text_that_was_calibrated_on(cli: Cli, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    made = cli("quantize", tiny_model, "--recipe", "gptq", "--data", text, "--tokens", "512", "-o", tmp_path / "out")
    assert made.code == 0, made.err
    refused(cli("evaluate", tmp_path / "out", "--text", text), "calibrated on", "measure on another text")


def test_full_disk(cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(cli("quantize", tiny_model, "--recipe", "rtn", "-o", tmp_path / "out"), "space")
    assert not (tmp_path / "out").exists()


def test_full_disk_where_nobody_expected_it(cli: Cli, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "scores.npz")

    monkeypatch.setattr("bitwright.evaluate.protocol.load_text", full)
    refused(cli("evaluate", packed), "disk is full", "scores.npz")


def test_artifact_is_no_source(cli: Cli, packed: Path, tmp_path: Path) -> None:
    refused(cli("quantize", packed, "-o", tmp_path / "out"), "already quantized")


def test_source_is_no_artifact(cli: Cli, tiny_model: Path) -> None:
    refused(cli("info", tiny_model), "no bitwright model")


def test_damaged_artifact(cli: Cli, packed: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(packed, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(cli("generate", damaged, "--prompt", "Hello"), "model.safetensors")


def test_altered_artifact_is_found_by_its_hash(cli: Cli, packed: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(packed, tmp_path / "altered"))
    weights = altered / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert cli("info", altered).code == 0
    refused(cli("info", altered, "--check"), "altered")


@pytest.mark.parametrize("option", ["--max-bops", "--max-memory", "--min-speed", "--max-kl", "--target-bpw", "--bits"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_that_are_none(cli: Cli, tiny_model: Path, tmp_path: Path, option: str, number: str) -> None:
    refused(cli("quantize", tiny_model, option, number, "-o", tmp_path / "out"), option, number)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", "64"), ("num_attention_heads", 0), ("rope_parameters", 3), ("hidden_size", -8)]
)
def test_config_that_makes_no_sense(cli: Cli, copy: Path, tmp_path: Path, field: str, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {field: value}))
    refused(cli("quantize", copy, "--recipe", "rtn", "-o", tmp_path / "out"), "config.json")


def test_config_that_is_a_folder(cli: Cli, copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "config.json").mkdir()
    refused(cli("quantize", copy, "--recipe", "rtn", "-o", tmp_path / "out"), "cannot read", "config.json")


def test_tokenizer_that_makes_no_sense(cli: Cli, copy: Path, text: Path, tmp_path: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    refused(cli("quantize", copy, "--data", text, "-o", tmp_path / "out"), "no usable tokenizer", "added_tokens")


@pytest.mark.parametrize(
    ("setting", "pattern"), [('keep=["*.q_prj"]', "*.q_prj"), ('rules=[["lm_head",{"kind":"binary"}]]', "lm_head")]
)
def test_patterns_of_no_weight(cli: Cli, tiny_model: Path, tmp_path: Path, setting: str, pattern: str) -> None:
    refused(cli("quantize", tiny_model, "--set", setting, "-o", tmp_path / "out"), pattern, "layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [("evaluate", "--plot", "p.png"), ("compare", "--plot", "p.png"), ("compare", "--markdown", "t.md")],
)
def test_places_that_cannot_be_written(
    cli: Cli, packed: Path, text: Path, tmp_path: Path, command: str, option: str, name: str
) -> None:
    """Before anything is measured: a file stands where a folder should be, a folder where a file should be."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / name).mkdir()
    for place in (tmp_path / "file" / name, tmp_path / name):
        refused(cli(command, packed, "--text", text, option, place), option, str(place))


@pytest.mark.parametrize("options", [("--skip-experts",), ("--budget", "3MB"), ()])
def test_nothing_there_is_said_first(cli: Cli, tmp_path: Path, options: tuple[str, ...]) -> None:
    refused(cli("evaluate", tmp_path / "none", *options), "there is no folder or file")


def test_a_file_where_a_folder_should_be(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = cli("quantize", tiny_model, "--recipe", "rtn", "-o", tmp_path / "file" / "out")
    refused(done, "nothing can be written in", str(tmp_path / "file"))
    assert len(done.err.splitlines()) == 1


def test_divergence_that_no_format_reaches(cli: Cli, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    sizes = ("--tokens", "256", "--length", "64", "--data", text)
    refused(cli("quantize", tiny_model, "--max-kl", "1e-30", *sizes, "-o", tmp_path / "out"), "1e-30", "nats a token")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--verify-uniform", "--bits", "3.5"), "--verify-uniform"),
        (("--set", "format.group=32", "--set", "format.group=64"), "given twice"),
    ],
)
def test_options_that_contradict(
    cli: Cli, tiny_model: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    refused(cli("quantize", tiny_model, "--recipe", "rtn", *options, "-o", tmp_path / "out"), told)


def test_a_plan_of_endless_brackets(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[" * 100_000)
    refused(cli("quantize", tiny_model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out"), "no valid JSON")


def test_a_place_through_a_folder_that_is_not_there(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    done = cli("quantize", tiny_model, "--recipe", "rtn", "-o", tmp_path / "none" / ".." / "out")
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_plan_where_it_cannot_be_written(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    refused(cli("quantize", tiny_model, "--dry-run", "--save-plan", tmp_path), "--save-plan", str(tmp_path))


def test_models_of_two_vocabularies(cli: Cli, packed: Path, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**config | {"vocab_size": 40}))
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    model.save_pretrained(other)
    refused(cli("compare", packed, other, "--text", text), "vocabulary", "40")


def test_picture_of_another_kind(cli: Cli, packed: Path) -> None:
    refused(cli("evaluate", packed, "--plot", "picture.bmp"), ".png")


def test_prompt_longer_than_the_model_reads(cli: Cli, packed: Path) -> None:
    refused(cli("generate", packed, "--prompt", "a" * 300), "300 tokens")


def test_temperature_below_zero(cli: Cli, packed: Path) -> None:
    refused(cli("generate", packed, "--prompt", "Hello", "--temperature", "-1"), "temperature")


def test_model_named_twice(cli: Cli, packed: Path, text: Path) -> None:
    refused(cli("compare", packed, packed, "--text", text), "twice")


def test_unknown_option_is_wrong_use(cli: Cli) -> None:
    assert cli("quantize", "--bit", "3").code == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("45MB", 45e6), ("45", 45e6), ("0.5", 5e5), ("1.2GB", 1.2e9), ("500kB", 5e5), ("45000000B", 45e6), ("3m", 3e6)],
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text, "--target-size") == size


@pytest.mark.parametrize("text", ["45000000", "MB", "45MiB", "nan", "inf", ""])
def test_sizes_that_are_none(text: str) -> None:
    """A bare number of bytes would be taken for as many megabytes."""
    with pytest.raises(BadInput, match="--target-size"):
        parse_size(text, "--target-size")
