"""Kill -9, memory limits and a block of a large model: minutes, run by ./dev test --slow."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def command(model: Path, out: Path, text: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "bitwright", "quantize", str(model), "-o", str(out), "--data", str(text)]
    return [*base, "--tokens", "1024", "--length", "128", *more]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def deep_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 blocks, so that there is something to interrupt."""
    return random_llama(tiny_model, tmp_path_factory.mktemp("deep") / "model", layers=12, width=192, ffn=512)


def random_llama(tiny: Path, folder: Path, layers: int, width: int, ffn: int) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    sizes = {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=True, **sizes, **heads
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_killed_three_times_gives_the_same_bytes(deep_model: Path, tmp_path: Path, text: Path) -> None:
    subprocess.run(command(deep_model, tmp_path / "whole", text), check=True, capture_output=True)
    out = tmp_path / "parts"
    rng = random.Random(0)
    journal = tmp_path / "parts.journal"
    for _ in range(3):
        process = subprocess.Popen(command(deep_model, out, text), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(journal.glob("*.json"))) if journal.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and len(list(journal.glob("*.json"))) > before + rng.randrange(1, 3):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    subprocess.run(command(deep_model, out, text), check=True, capture_output=True)
    assert digest(out) == digest(tmp_path / "whole")


LIMITED = """
import re, resource, sys
import bitwright.engine.run, bitwright.cli.app
import transformers.models.llama.modeling_llama
from bitwright.runtime import native
native.available()
status = open("/proc/self/status").read()
data = int(re.search(r"VmData:\\s+(\\d+)", status).group(1)) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (data + 200_000_000,) * 2)
from bitwright.cli.app import main
main()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_a_model_of_400_mb_goes_through_200_mb(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    model = random_llama(tiny_model, tmp_path / "model", layers=16, width=768, ffn=2048)
    assert (model / "model.safetensors").stat().st_size > 400_000_000
    arguments = command(model, tmp_path / "out", text, "--max-memory", "190", "--threads", "1")[3:]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_block_of_8b_shape_goes_through(tmp_path: Path, text: Path, tiny_model: Path) -> None:
    """Hidden 4096, feed-forward 14336; prints time and peak memory."""
    import resource

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=4096, intermediate_size=14336, num_hidden_layers=1,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=256, tie_word_embeddings=True,
        dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    began = time.monotonic()
    subprocess.run(
        command(tmp_path / "model", tmp_path / "out", text, "--recipe", "pb-llm"), check=True, capture_output=True
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\none 8B-shape block: {time.monotonic() - began:.0f} s, peak {peak / 1e9:.2f} GB")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 4 * 218e6 / 8
