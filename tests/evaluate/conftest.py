from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn


class Bytes:
    """A tokenizer of 256 bytes and an end of text."""

    eos_token_id = 256
    bos_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def encode(self, text: str, **_: object) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Bigram(nn.Module):
    """Next-token logits from the token before and its place: causal, quick, and it counts its calls."""

    def __init__(self, vocabulary: int = 257, noise: float = 0.0) -> None:
        super().__init__()
        table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
        table += noise * torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(1))
        self.table = nn.Parameter(table)
        self.calls = 0

    def forward(self, ids: Tensor) -> SimpleNamespace:
        self.calls += 1
        place = torch.linspace(0.5, 1.0, ids.shape[1])[:, None]
        return SimpleNamespace(logits=self.table[ids] * place)


@pytest.fixture
def tokenizer() -> Bytes:
    return Bytes()


@pytest.fixture
def bigram() -> type[Bigram]:
    return Bigram
