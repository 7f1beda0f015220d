"""Zero-shot tasks by lm-eval's own prompts and metrics, on local files, without a network."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from bitwright.errors import BadInput, Refused, UnknownName
from bitwright.evaluate.metrics import Totals
from bitwright.evaluate.run import Progress
from bitwright.evaluate.scores import concatenate, score_
from bitwright.evaluate.task_data import TASKS, read_rows

ALIASES = {"lambada": "lambada_openai"}
DATA_VARIABLE = "BITWRIGHT_TASKS_DATA"


def data_folder(given: str | Path | None = None) -> Path:
    """The folder of task files: the one given, or the one that BITWRIGHT_TASKS_DATA names."""
    named = given or os.environ.get(DATA_VARIABLE)
    if not named:
        raise BadInput(f"tasks need their files: give --tasks-data FOLDER or set {DATA_VARIABLE}.")
    folder = Path(named)
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder} with task files; give --tasks-data FOLDER or set {DATA_VARIABLE}.")
    return folder


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    names: Sequence[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    max_positions: int = 2048,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracy of a causal model on each task, the first `limit` items (None: all).

    Of each: `n`, `acc`, `acc_stderr`, where the harness defines it `acc_norm` and `acc_norm_stderr` (LAMBADA:
    `perplexity` of the last word), and for choices `balance` and `brier` of the probabilities over the options.
    """
    wanted = list(dict.fromkeys(ALIASES.get(name, name) for name in names))
    for name in wanted:
        if name not in TASKS:
            raise UnknownName("task", name, TASKS)
    if not wanted:
        raise BadInput(f"no task is named; choose from {', '.join(TASKS)}.")
    if find_spec("lm_eval") is None:
        raise Refused("tasks need lm-eval: install it with `pip install bitwright[eval]`.")
    folder = data_folder(data)
    with TemporaryDirectory(prefix="bitwright-tasks-") as work:
        for name in wanted:
            _write_task(name, folder, Path(work), limit)
        output = _simple_evaluate(model, tokenizer, wanted, Path(work), max_positions, progress)
    return {name: _summary(output["results"][name], output["samples"][name]) for name in wanted}


def _write_task(name: str, data: Path, work: Path, limit: int | None) -> None:
    import lm_eval

    task = TASKS[name]
    file = work / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in read_rows(task, data)[:limit]))
    splits = {f"{split}_split": None for split in ("training", "validation", "test", "fewshot")}
    definition = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / task.definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {task.split: str(file)}, "cache_dir": str(work / "arrow")},
        **splits,
        f"{task.split}_split": task.split,
        **dict(task.overrides),
    }
    (work / f"{name}.yaml").write_text(json.dumps(definition))  # JSON is YAML


def _simple_evaluate(
    model: nn.Module,
    tokenizer: Any,
    names: list[str],
    work: Path,
    max_positions: int,
    progress: Progress | None,
) -> dict[str, Any]:
    from datasets import disable_progress_bars
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from bitwright.evaluate.harness import HarnessModel

    disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of defaults in its own task definitions
    output: dict[str, Any] = simple_evaluate(
        model=HarnessModel(model, tokenizer, max_positions, progress),
        tasks=list(names),
        task_manager=TaskManager(include_path=str(work), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return output


def _summary(result: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    plain = {key.removesuffix(",none"): value for key, value in result.items() if key.endswith(",none")}
    kept: dict[str, float] = {key: float(plain[key]) for key in ("acc", "acc_norm", "perplexity") if key in plain}
    n = len(samples)
    errors = {
        f"{key}_stderr": float(np.sqrt(value * (1 - value) / max(n - 1, 1)))
        for key, value in kept.items()
        if key.startswith("acc")
    }
    return {"n": n, **kept, **errors, **_calibration(samples)}


def _calibration(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Balance and Brier score of the softmax over the options' log-likelihoods; nothing for tasks without options."""
    if "gold" not in samples[0]["doc"]:
        return {}
    options = [torch.tensor([[answer[0] for answer in s["filtered_resps"]]]) for s in samples]
    right = [torch.tensor([s["doc"]["gold"]]) for s in samples]
    totals = Totals.of(concatenate(map(score_, options, right)))
    return {"balance": totals.balance, "brier": totals.mean_brier}
