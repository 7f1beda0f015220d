"""What exactly is measured: the text, its windows, and nothing left to guess."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.calibrate.tokens import OPENERS, builtin_text, read_text, token_hash
from bitwright.errors import BadInput

WINDOW = 2048
"""Tokens of one window, where the model can read that many."""


@dataclass(frozen=True)
class Text:
    """A text to be measured on, and what to call it."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Hash of the UTF-8 bytes; for a plain text file it is the hash of the file."""
        return sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """How a perplexity was measured. Two numbers compare if and only if their protocols are equal.

    The text is tokenized as a whole, without BOS or other special tokens, and cut into windows that do not overlap
    (stride = window). The first token of a window is context only; the rest of the text after the last full window
    is not used. Logits are float32.
    """

    text: str
    text_sha256: str
    window: int
    windows: int  # measured: the first ones
    available: int  # in the text
    tokens_sha256: str  # of the measured windows: ties the number to the tokenizer
    words: int  # separated by white space, in the predicted tokens: for the perplexity per word

    def to_json(self) -> dict[str, Any]:
        """Every field, with name and version of the protocol."""
        return {"name": "fixed-windows", "version": 1, **asdict(self), "stride": self.window, "bos": "none"}

    def __str__(self) -> str:
        return (
            f"{self.text} (sha256 {self.text_sha256[:12]}), {self.windows} of {self.available} windows of "
            f"{self.window} tokens, stride {self.window}, no BOS (fixed-windows v1)"
        )


def load_text(source: str | Path | None = None) -> Text:
    """A text file, or without `source` a text that every installation has.

    Any file is taken as UTF-8 text with its line ends kept; .jsonl and .json hold documents, which are joined by an
    empty line; each may also be .gz or .bz2. Raises `BadInput` for what cannot be read.
    """
    if source is None:
        return Text(*builtin_text())
    path = Path(source)
    plain = Path(path.stem) if path.suffix in OPENERS else path
    if plain.suffix in (".jsonl", ".json"):
        return Text(path.name, "\n\n".join(read_text(path)))
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="") as file:
            return Text(path.name, file.read())
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read as text: {error}.") from None


def prepare(
    tokenizer: Any,
    text: Text,
    *,
    max_positions: int | None = None,
    limit: int | None = None,
    window: int = WINDOW,
) -> tuple[Protocol, Tensor]:
    """The protocol of a measurement and its windows, int64 [W, window].

    `max_positions` is the longest input of the model: a shorter one makes shorter windows, and the protocol says so.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"{limit} windows cannot be measured; give 1 or more.")
    length = min(window, max_positions or window)
    every = windows(tokenizer, text.content, length)
    chosen = every[:limit]
    words = sum(len(tokenizer.decode(row[1:].tolist()).split()) for row in chosen)
    return Protocol(text.name, text.sha256, length, len(chosen), len(every), token_hash(chosen), words), chosen


def windows(tokenizer: Any, text: str, length: int) -> Tensor:
    """Every window of a text, int64 [W, length], without overlap; `BadInput` if it is shorter than one."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    count = len(ids) // length
    if not count:
        raise BadInput(f"the text has {len(ids)} tokens, but one window needs {length}; give a longer text.")
    return ids[: count * length].view(count, length)
