"""Calibration text: files or the model's own samples -> windows of tokens, hashed and kept apart from evaluation."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import BadInput, WorkFailed
from bitwright.models.continuation import continued

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
FIELDS = ("text", "messages", "content")
GROUP = 20  # sequences sampled together


def read_text(path: Path) -> list[str]:
    """Documents of a .txt (one), .jsonl (one a line) or .json (list or one) file, each optionally .gz or .bz2.

    A record is a string or an object with a field "text", "messages" (a chat: contents joined by blank lines) or
    "content". `BadInput` names file and line.
    """
    if not path.is_file():
        raise BadInput(f"there is no text file {path}.")
    suffix = Path(path.stem).suffix if path.suffix in OPENERS else path.suffix
    if suffix not in (".txt", ".md", ".jsonl", ".json"):
        raise BadInput(f"{path}: text files end in .txt, .md, .jsonl or .json, optionally followed by .gz or .bz2.")
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            text: str = file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as text: {error}.") from None
    if suffix in (".txt", ".md"):
        return [text] if text.strip() else []
    if suffix == ".jsonl":
        lines = [(f"{path} line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [_document(_json(where, line), where) for where, line in lines]
    records = _json(str(path), text)
    if not isinstance(records, list):
        records = [records]
    return [_document(record, f"{path} record {i}") for i, record in enumerate(records)]


def builtin_text() -> tuple[str, str]:
    """Name and content of a text that every Python installation has: the topics of its help system."""
    from pydoc_data.topics import topics

    return "pydoc_data.topics", "\n\n".join(topics[key] for key in sorted(topics))


def windows(tokenizer: PreTrainedTokenizerBase, documents: list[str], length: int, name: str = "the text") -> Tensor:
    """Int64 [S, length]: packed documents, no special tokens but the end token between documents, without overlap.

    `BadInput` if the text, called `name`, is shorter than one window.
    """
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for document in documents:
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        ids += [end] if end is not None and len(documents) > 1 else []
    whole = len(ids) // length
    if not whole:
        raise BadInput(f"{name} has {len(ids)} tokens, {length} are needed: give more text, or shorter windows.")
    return torch.tensor(ids[: whole * length], dtype=torch.int64).view(whole, length)


def of_files(tokenizer: PreTrainedTokenizerBase, paths: Sequence[Path], length: int) -> Tensor:
    """The windows of all files int64 [S, length], file after file."""
    return torch.cat([windows(tokenizer, read_text(path), length, str(path)) for path in paths])


def drawn(every: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the sequences [S, T], in random order: the first of them stand for the whole text too.

    `BadInput` if there are fewer.
    """
    if len(every) < count:
        raise BadInput(
            f"the text has {every.numel()} tokens, {count * every.shape[1]} are needed for {count} windows of "
            f"{every.shape[1]}: give more text, or fewer tokens (--tokens)."
        )
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]]


def token_hash(ids: Tensor) -> str:
    """SHA-256 of tokens and their shape."""
    text = f"{tuple(ids.shape)}".encode() + ids.to(torch.int64).contiguous().numpy().astype("<i8").tobytes()
    return hashlib.sha256(text).hexdigest()


def self_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int = 20_000,
    length: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The model's own text, int64 [ceil(tokens / length), length]: sampled at temperature 1 from the first token.

    Groups of 20 sequences with a KV cache each run on one thread, several groups at a time: the result is the same
    for any number of threads. `progress(done, steps)` is called after each token of a group. `BadInput` if the
    tokenizer has neither a first nor an end token to begin with.
    """
    first = first_token(tokenizer)
    draws = torch.rand(-(-tokens // length), length - 1, generator=torch.Generator().manual_seed(seed)).double()
    parts = torch.split(draws, GROUP)
    total, threads, stop, done = len(parts) * (length - 1), torch.get_num_threads(), Event(), count(1)

    def step() -> None:
        if stop.is_set():
            raise WorkFailed("sampling was stopped.")
        if progress:
            progress(next(done), total)

    def sample(part: Tensor) -> Tensor:
        torch.set_num_threads(1)  # sums in another order would give other texts; counts for this thread
        return _sampled(model, first, part, step)

    try:
        with ThreadPoolExecutor(max_workers=min(threads, len(parts))) as pool:
            try:
                return torch.cat(list(pool.map(sample, parts)))
            finally:
                stop.set()  # on an interrupt, the other threads end with their step
    finally:
        torch.set_num_threads(threads)


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a text of the model's own begins with; `BadInput` if there is none."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not isinstance(first, int):
        raise BadInput("the tokenizer has no first and no end token to sample from; give a text with --data.")
    return first


@torch.no_grad()
def _sampled(model: PreTrainedModel, first: int, draws: Tensor, step: Callable[[], None]) -> Tensor:
    """Sequences [S, T + 1] that begin with `first` and go on by uniform `draws` [S, T], inverting the distribution."""
    ids = torch.full((len(draws), 1), first, dtype=torch.int64)
    state = None
    for draw in torch.split(draws, 1, dim=1):
        logits, state = continued(model, ids[:, -1:], state)
        sums = logits[:, -1].softmax(-1).cumsum(-1, dtype=torch.float64)
        chosen = torch.searchsorted(sums, draw * sums[:, -1:], right=True).clamp_max(sums.shape[1] - 1)
        ids = torch.cat([ids, chosen], dim=1)
        step()
    return ids


def cached_tokens(folder: Path, key: str, make: Callable[[], Tensor]) -> Tensor:
    """The int64 tokens stored under a key (a hash), or made now and stored; files appear whole or not at all."""
    path = folder / f"{key}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path, allow_pickle=False))
    ids = make()
    folder.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, ids.to(torch.int64).numpy(), allow_pickle=False)
        Path(fresh).replace(path)
    finally:
        Path(fresh).unlink(missing_ok=True)
    return ids


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where} is no valid JSON: {error}.") from None


def _document(record: Any, where: str) -> str:
    if isinstance(record, str):
        return record
    value = next((record[f] for f in FIELDS if f in record), None) if isinstance(record, dict) else None
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        value = "\n\n".join(str(turn.get("content", "")) for turn in value)
    if not isinstance(value, str):
        raise BadInput(f"{where} is neither a string nor an object with one of the fields {', '.join(FIELDS)}.")
    return value
