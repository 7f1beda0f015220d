"""A few threads that compute the same bits whatever their number is."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def return_memory_at_once() -> None:
    """Let glibc give every freed tensor back to the system, at some cost in page faults.

    Its default raises the size above which it does so with every large free, and keeps the rest in pieces.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 1 << 18)


def product_type() -> torch.dtype:
    """Of the factors of quick matrix products: bfloat16 where the processor multiplies it faster than float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@contextmanager
def quick_products() -> Iterator[None]:
    """Float32 products of hidden states by oneDNN, which on processors of AMD takes half the time of torch's default.

    It may round factors to bfloat16 where the processor multiplies those faster: fine for statistics, not for solvers.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Workers:
    """Runs independent tasks on `count` threads, each with one torch thread.

    Matrix products and factorisations change in the last bit with their number of threads; whole tasks on single
    threads, combined in order by the caller, do not.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or cores()
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, task: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Results in the order of the items; at most one more than `count` wait, so that memory stays bounded."""
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(_without_grad(task), item))
                if len(waiting) > self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Ends the threads and gives torch its own back."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_grad(task: Callable[[A], B]) -> Callable[[A], B]:
    """Gradient mode belongs to a thread, so each task sets it itself."""

    def run(item: A) -> B:
        with torch.no_grad():
            return task(item)

    return run
