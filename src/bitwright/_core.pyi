from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitwright.protocols import Term
from bitwright.runtime.plan import Plan

Floats = NDArray[np.float32]

def cpu_info() -> dict[str, Any]:
    """Levels in use, usable and refused with the reason, and cores this process may use."""

def isa() -> str:
    """The instruction-set level in use."""

def set_isa(name: str) -> None:
    """Use this level from now on; ValueError if it cannot run here."""

def mix(x: Tensor | Floats, before: Tensor | None, after: Tensor | None, block: int, across: Tensor | None) -> Floats:
    """Float32 [N, C], factors [C] or none, a matrix of blocks or none -> [N, C]: H (x * before) * after.

    H is ones and minus ones in blocks, then sums of the blocks by the rows of `across`.

    On the calling thread.
    """

def quantize(x: Tensor | Floats, group: int) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]:
    """Float32 [T, C] -> codes [T, C], scales [T, G], sums of codes [T, G], as kernels compute them."""

def score(
    logits: Tensor | Floats, targets: Tensor, parent: Tensor | Floats | None = None, threads: int = 0
) -> dict[str, Any]:
    """Columns of `TokenScores` but for `correct`; logits float32 [n, V] become log-probabilities in place.

    `targets` int64 [n]; `parent` log-probabilities float32 [n, V]. 0 threads: all cores this process may use.
    """

def follow(student: Tensor, parent: Tensor, ambiguity: float, sharpness: float) -> float:
    """Mean over rows of w KL(parent || student), logits [T, V] float32 or bfloat16; `parent` becomes its gradient.

    The gradient is that in the logits of the student;
    w = 1 + ambiguity * (product of entropies as shares of log V)^sharpness.
    On the calling thread.
    """

def ceilings(bytes: int, threads: int = 0) -> tuple[float, float]:
    """Best rates in about a second: bytes read a second from so large a stretch, and 8-bit multiply-adds a second."""

class Matrix:
    """Packed [rows, cols], the sum of terms, viewed where memory is 64-byte aligned, copied where not."""

    def __init__(self, terms: Sequence[Term], rows: int, cols: int, bias: Tensor | Floats | None = None) -> None: ...
    def matmul(self, x: Tensor | Floats, threads: int = 0) -> Floats:
        """Float32 [T, cols], contiguous -> [T, rows]; 0 threads: all cores this process may use."""

    def reference(self, x: Tensor | Floats) -> Floats:
        """The same by the plain loops that kernels are checked against."""

    def kernel_seconds(self, x: Tensor | Floats, repeats: int) -> float:
        """Median seconds of the kernels alone on the calling thread, x quantized beforehand."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def nbytes(self) -> int:
        """Bytes read for one token."""

class Sampler:
    """Chooses tokens: the largest logit at temperature 0, else a draw."""

    def __init__(
        self,
        temperature: float = 0,
        top_k: int = 0,
        top_p: float = 1,
        min_p: float = 0,
        repetition_penalty: float = 1,
        seed: int = 0,
    ) -> None: ...
    def next(self, logits: Floats, seen: list[int]) -> int:
        """The next token; `logits` float32 [V] may be changed, `seen` are the tokens so far, for the penalty."""

class Engine:
    """A decoder language model and sequences of tokens, each with a cache; sequence 0 is always there."""

    def __init__(self, plan: Plan, threads: int = 0) -> None: ...
    def forward(self, tokens: list[int], all: bool = False, sequence: int = 0) -> Floats:
        """Appends tokens; logits [1, V] of the last, or [T, V] of all."""

    def step(self, sequences: list[int], tokens: list[int]) -> Floats:
        """Appends one token to each of the sequences; logits [N, V]."""

    def open(self) -> int:
        """A new, empty sequence."""

    def close(self, sequence: int) -> None:
        """Frees a sequence's cache and its number."""

    def generate(
        self,
        prompt: list[int],
        limit: int,
        emit: Callable[[list[int]], bool],
        temperature: float = 0,
        top_k: int = 0,
        top_p: float = 1,
        min_p: float = 0,
        repetition_penalty: float = 1,
        seed: int = 0,
        stops: list[int] = [],
        chunk: int = 16,
        before: list[int] = [],
    ) -> None:
        """Appends to sequence 0 the prompt and up to `limit` tokens; they go to `emit`, `chunk` at a time.

        Ends when `emit` returns False and after a token of `stops`. `before` are the tokens that the cache holds, for
        the repetition penalty.
        """

    def truncate(self, position: int, sequence: int = 0) -> None:
        """Forgets all tokens from this position on."""

    @property
    def position(self) -> int:
        """Tokens in the cache of sequence 0."""

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches."""

def encode_trellis(
    x: Tensor | Floats,
    table: Tensor | Floats,
    per_word: int,
    importance: Tensor | Floats | None = None,
    u: Tensor | Floats | None = None,
    threads: int = 0,
) -> NDArray[np.uint8]:
    """Windows [R, C] of the words nearest to x [R, C], in units of the table [128].

    `importance` [R, C] weighs squared errors. With `u` [C, C] upper triangular, C <= per_word: errors e of
    least sum e^2, x - value = e u.
    """
