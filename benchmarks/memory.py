"""What a model takes in memory: `python benchmarks/memory.py FOLDER` prints bytes beside the libraries.

The model is loaded and continues a text, goes, and comes again: the second time nothing is imported any more, and what
the process holds more than before is the model's, its cache included.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

from bitwright.cli.subject import open_subject

PROMPT, LIMIT = [1, 2, 3], 32


def resident() -> int:
    """Bytes of memory that this process holds, pages of mapped files included."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def growth(folder: str) -> int:
    """Bytes that a model adds."""

    def run() -> object:
        speaker = open_subject(folder).speaker()
        list(speaker.tokens(PROMPT, LIMIT))
        return speaker

    run()
    before = resident()
    speaker = run()
    after = resident()
    del speaker
    return after - before


if __name__ == "__main__":
    print(growth(sys.argv[1]))
