"""Zero-shot tasks of models side by side: accuracy with standard error, and the mean over tasks.

Finished models are kept in RESULTS.json and not done again; a table is printed after each. Run:

    python benchmarks/tasks.py TASKS_FOLDER ITEMS RESULTS.json MODEL ...
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from command import bitwright

TASKS = ("lambada", "piqa", "arc_easy", "hellaswag", "winogrande", "boolq")


def row(name: str, tasks: dict[str, Any]) -> str:
    """A line of the table; the mean's error is that of independent tasks."""
    errors = [task["acc_stderr"] for task in tasks.values()]
    mean = sum(task["acc"] for task in tasks.values()) / len(tasks)
    error = math.sqrt(sum(e * e for e in errors)) / len(errors)
    cells = [f"{100 * task['acc']:.1f} ± {100 * task['acc_stderr']:.1f}" for task in tasks.values()]
    return f"| {' | '.join([name, *cells])} | {100 * mean:.1f} ± {100 * error:.1f} |"


def main(folder: str, items: str, results: str, *models: str) -> None:
    """All models that are not there yet."""
    place = Path(results)
    for model in models:
        found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
        if model not in found:
            asked = ["--tasks", ",".join(TASKS), "--tasks-data", folder, "--limit", items, "--windows", 1]
            found[model] = bitwright("evaluate", model, *asked)["tasks"]
            place.write_text(json.dumps(found, indent=1))
        head = ["model", *found[model], "mean"]
        print(f"| {' | '.join(head)} |\n| {' | '.join(['---'] * len(head))} |")
        print("\n".join(row(Path(name).name, tasks) for name, tasks in found.items()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
