"""Small models that were really trained, in float32, where the folder of shared data is there."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(os.environ.get("BITWRIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))
STORIES = DATA / "text" / "tinystories" / "tinystories_v2_10k_lines.txt.gz"


@pytest.fixture(scope="session")
def stories260k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of 260,000 weights that tells stories (A. Karpathy), as a model folder."""
    source = _present("stories260K")
    return _saved(source / "stories260K.bin", _tokenizer(source / "tok512.bin"), tmp_path_factory)


@pytest.fixture(scope="session")
def babyllama105(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of 940,000 weights that spells stories (EN10/BabyLlama), as a model folder."""
    source = _present("babyllama-tok105")
    return _saved(source / "model5000.bin", _speller(source / "tok105.vocab"), tmp_path_factory)


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stories to learn from, and others to measure on, as .txt files."""
    if not STORIES.is_file():
        pytest.skip(f"{STORIES} is not here; BITWRIGHT_DATA names the folder of shared data")
    with gzip.open(STORIES, "rt", encoding="utf-8") as file:
        told = [story.strip() for story in file.read().split("<|endoftext|>")]
    folder = tmp_path_factory.mktemp("stories")
    for name, part in (("held.txt", told[:60]), ("learn.txt", told[100:1100])):
        (folder / name).write_text("\n".join(part), encoding="utf-8")
    return folder / "learn.txt", folder / "held.txt"


@pytest.fixture(scope="session")
def babyllama() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A LLaMA of 940,000 weights that spells stories (EN10/BabyLlama), and int64 [S, 256] to learn and measure on."""
    source = _present("babyllama-tok105")
    if not STORIES.is_file():
        pytest.skip(f"{STORIES} is not here; BITWRIGHT_DATA names the folder of shared data")
    lines = (source / "tok105.vocab").read_text(encoding="utf-8").splitlines()
    vocabulary = {line.split("\t")[0]: i for i, line in enumerate(lines)}
    with gzip.open(STORIES, "rt", encoding="utf-8") as file:
        told = [story.strip() for story in file.read().split("<|endoftext|>")[:300]]

    def rows(stories: list[str]) -> torch.Tensor:
        spelled = [f" {story}"[:255].replace(" ", "\u2581").replace("\n", "\u2581") for story in stories]
        return torch.tensor([[1, *(vocabulary.get(c, 0) for c in text)] for text in spelled if len(text) == 255])

    model = _model(source / "model5000.bin").eval().requires_grad_(False)
    return model, rows(told[100:])[:40], rows(told[:60])[:16]


def _present(name: str) -> Path:
    """The folder of a model; the test is skipped where it is not."""
    source = DATA / "models" / name
    if not source.is_dir():
        pytest.skip(f"{source} is not here; BITWRIGHT_DATA names the folder of shared data")
    return source


def _saved(weights: Path, tokenizer: Any, factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = factory.mktemp("models") / weights.stem
    _model(weights).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _model(path: Path) -> Any:
    """Of llama2.c's layout: seven int32, then float32 arrays, each stacked over the layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("<7i", raw[:28])
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=length,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    rest = torch.from_numpy(np.frombuffer(raw, np.float32, offset=28).copy())
    keys = kv_heads * (dim // heads)

    def take(*shape: int) -> torch.Tensor:
        nonlocal rest
        count = int(np.prod(shape))
        part, rest = rest[:count].view(shape), rest[count:]
        return part

    def halves(w: torch.Tensor) -> torch.Tensor:
        """Rotary pairs (2i, 2i + 1) of each head as (i, i + half)."""
        return w.view(-1, dim // heads // 2, 2, dim).transpose(1, 2).reshape(w.shape)

    state = {"model.embed_tokens.weight": take(vocabulary, dim)}
    names = (
        ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (keys, dim)),
        ("self_attn.v_proj", (keys, dim)), ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)), ("mlp.down_proj", (dim, hidden)), ("mlp.up_proj", (hidden, dim)),
    )  # fmt: skip
    for name, shape in names:
        for layer, w in enumerate(take(layers, *shape)):
            rotated = name.endswith(("q_proj", "k_proj"))
            state[f"model.layers.{layer}.{name}.weight"] = halves(w) if rotated else w
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model


def _speller(path: Path) -> Any:
    """One token a character; spaces and ends of lines are U+2581."""
    from tokenizers import Regex, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=pieces[0]))
    spaces = normalizers.Replace(Regex("[ \\n]"), "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(" "), spaces])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=pieces[1], eos_token=pieces[2], unk_token=pieces[0]
    )


def _tokenizer(path: Path) -> Any:
    """Pieces with scores: the neighbours whose joined piece has the best score are merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    raw, at, pieces = path.read_bytes(), 4, []
    while at < len(raw):
        score, size = struct.unpack_from("<fi", raw, at)
        pieces.append((raw[at + 8 : at + 8 + size].decode("utf-8", "replace"), score))
        at += 8 + size
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocabulary |= {piece: i for i, (piece, _) in enumerate(pieces) if i >= 259}
    merged = sorted((-score, piece) for piece, score in pieces[259:] if len(piece) > 1)
    splits = [(piece[:cut], piece[cut:]) for _, piece in merged for cut in range(1, len(piece))]
    merges = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
