"""A GGUF file in llama.cpp, in a process of its own: its threads and its memory must not disturb ours.

Run as a module with the file, this is that process: it answers lines "threads, context, tokens" with seconds; tokens 0
is a prompt of `context` tokens.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from bitwright.errors import BadInput, WorkFailed

POSITIONS = 2048


class LlamaCpp:
    """One file; several threads counts share the process through `with_threads`."""

    def __init__(self, file: Path, threads: int, process: subprocess.Popen[str] | None = None) -> None:
        if find_spec("llama_cpp") is None:
            raise BadInput("--against needs llama-cpp-python: pip install 'bitwright[bench]'.")
        if not file.is_file():
            raise BadInput(f"there is no file {file}: give a GGUF file to compare with.")
        self.file = file
        self.threads = threads
        self.process = process or subprocess.Popen(
            [sys.executable, "-m", __name__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def with_threads(self, threads: int) -> LlamaCpp:
        """The same process with another number of threads."""
        return LlamaCpp(self.file, threads, self.process)

    def decode(self, context: int, tokens: int) -> float:
        """Seconds; given tokens are read, nothing is sampled."""
        return self._ask(context, tokens)

    def prefill(self, tokens: int) -> float:
        """Seconds, with the logits of the last token."""
        return self._ask(tokens, 0)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, context: int, tokens: int) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(self.threads, context, tokens, file=self.process.stdin, flush=True)
            return float(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise WorkFailed(f"llama.cpp cannot run {self.file}; its messages are above.") from None


def _serve(file: str) -> None:
    import llama_cpp

    model = llama_cpp.Llama(file, n_ctx=POSITIONS, n_batch=512, n_ubatch=512, verbose=False)
    held = 0
    for line in sys.stdin:
        threads, context, tokens = map(int, line.split())
        llama_cpp.llama_set_n_threads(model.ctx, threads, threads)
        memory = llama_cpp.llama_get_memory(model.ctx)
        if tokens and held >= context:
            llama_cpp.llama_memory_seq_rm(memory, 0, context, -1)
        else:
            llama_cpp.llama_memory_clear(memory, False)
            start = perf_counter()
            _read(llama_cpp, model.ctx, context)
        if tokens:
            start = perf_counter()
            for _ in range(tokens):
                _read(llama_cpp, model.ctx, 1)
        print(perf_counter() - start, flush=True)
        held = context + tokens


def _read(llama_cpp: Any, context: Any, count: int) -> None:
    for done in range(0, count, 512):
        here = min(512, count - done)
        tokens = (llama_cpp.llama_token * here)(*(100 + (done + i) * 7 % 5000 for i in range(here)))
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, here)):
            raise SystemExit("llama_decode failed")


if __name__ == "__main__":
    _serve(sys.argv[1])
