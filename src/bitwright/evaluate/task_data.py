"""Local task files in the layouts their authors publish, as the rows that lm-eval's own task definitions read.

Rows of multiple choice carry the index of the right option as "gold" beside what the definition asks for.
"""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.errors import BadInput

Row = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """Where a task's files are, and which definition of the harness they serve."""

    definition: str  # below lm_eval/tasks
    split: str
    files: tuple[str, ...]  # below the folder of task data; the last suffix may be missing (not compressed)
    rows: Callable[[Sequence[str]], Iterator[Row]]  # from the content of each file
    overrides: tuple[tuple[str, Any], ...] = ()  # of the harness's definition, where our rows are already prepared


def lambada(texts: Sequence[str]) -> Iterator[Row]:
    """{"text"} as it is."""
    return _objects(texts[0])


def piqa(texts: Sequence[str]) -> Iterator[Row]:
    """{"goal", "sol1", "sol2"} and a file of labels, one a line."""
    labels = texts[1].split()
    rows = list(_objects(texts[0]))
    if len(labels) != len(rows):
        raise BadInput(f"PIQA has {len(rows)} questions but {len(labels)} labels; both files must be of one split.")
    return ({**row, "label": int(label), "gold": int(label)} for row, label in zip(rows, labels, strict=True))


def arc(texts: Sequence[str]) -> Iterator[Row]:
    """{"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}, three to five choices."""
    for row in _objects(texts[0]):
        choices = {key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")}
        yield {
            "question": row["question"]["stem"],
            "choices": choices,
            "answerKey": row["answerKey"],
            "gold": choices["label"].index(row["answerKey"]),
        }


def winogrande(texts: Sequence[str]) -> Iterator[Row]:
    """{"sentence" with a gap "_", "option1", "option2", "answer": "1" or "2"}."""
    return ({**row, "gold": int(row["answer"]) - 1} for row in _objects(texts[0]))


def boolq(texts: Sequence[str]) -> Iterator[Row]:
    """{"query": "Passage: ...\\nQuestion: ...?", "gold"}, taken apart into passage and question."""
    for row in _objects(texts[0]):
        passage, mark, question = row["query"].rpartition("\nQuestion: ")
        if not mark or not passage.startswith("Passage: "):
            raise BadInput(f'a BoolQ query must read "Passage: ...\\nQuestion: ...?", not {row["query"][:60]!r}.')
        yield {
            "passage": passage.removeprefix("Passage: "),
            "question": question.removesuffix("?"),
            "label": row["gold"],
            "gold": row["gold"],
        }


def hellaswag(texts: Sequence[str]) -> Iterator[Row]:
    """Six lines an item: "activity: context", index of the right ending, four endings; already cleaned."""
    lines = texts[0].splitlines()
    if len(lines) % 6:
        raise BadInput(f"HellaSwag has six lines an item, but the file has {len(lines)} lines.")
    for at in range(0, len(lines), 6):
        query, label, *choices = lines[at : at + 6]
        yield {"query": query, "choices": choices, "label": int(label), "gold": int(label)}


TASKS = {
    "lambada_openai": LocalTask(
        "lambada/lambada_openai.yaml", "test", ("lambada_openai/lambada_test.jsonl.gz",), lambada
    ),
    "piqa": LocalTask("piqa/piqa.yaml", "validation", ("piqa/valid.jsonl.gz", "piqa/valid-labels.lst"), piqa),
    "arc_easy": LocalTask("arc/arc_easy.yaml", "test", ("arc/ARC-Easy-Test.jsonl.gz",), arc),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", "test", ("arc/ARC-Challenge-Test.jsonl.gz",), arc),
    "winogrande": LocalTask("winogrande/default.yaml", "validation", ("winogrande/dev.jsonl.gz",), winogrande),
    "boolq": LocalTask("super_glue/boolq/default.yaml", "validation", ("boolq/boolq_dev.jsonl.gz",), boolq),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml",
        "validation",
        ("hellaswag/hellaswag_val_full.txt.bz2",),
        hellaswag,
        (("process_docs", None),),
    ),
}


def read_rows(task: LocalTask, folder: Path) -> list[Row]:
    """All items of a task from its files; `BadInput` if one is missing or of another layout."""
    paths = [_find(folder / name) for name in task.files]
    try:
        return list(task.rows([_read(path) for path in paths]))
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{paths[0]} is not in the layout that its authors publish: {error!r}.") from None


def _find(path: Path) -> Path:
    plain = path.with_suffix("") if path.suffix in (".gz", ".bz2") else path
    for candidate in (path, plain):
        if candidate.exists():
            return candidate
    raise BadInput(f"there is no {path} (or {plain.name}); put the task's file there, in the layout of its authors.")


def _read(path: Path) -> str:
    opener = {".gz": gzip.decompress, ".bz2": bz2.decompress}.get(path.suffix, bytes)
    return opener(path.read_bytes()).decode()


def _objects(text: str) -> Iterator[Row]:
    return (json.loads(line) for line in text.splitlines() if line)
