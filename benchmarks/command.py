"""A bitwright command from a benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def bitwright(*words: object) -> dict[str, Any]:
    """The JSON that a command prints; `CalledProcessError` if it fails."""
    command = [sys.executable, "-m", "bitwright", *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
