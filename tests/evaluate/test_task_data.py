import bz2
import gzip
import json
from pathlib import Path

import pytest

from bitwright.errors import BadInput
from bitwright.evaluate.task_data import TASKS, arc, boolq, hellaswag, piqa, read_rows, winogrande


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_piqa_joins_questions_and_labels() -> None:
    questions = lines({"goal": "g", "sol1": "a", "sol2": "b"}, {"goal": "h", "sol1": "c", "sol2": "d"})
    assert list(piqa([questions, "1\n0\n"])) == [
        {"goal": "g", "sol1": "a", "sol2": "b", "label": 1, "gold": 1},
        {"goal": "h", "sol1": "c", "sol2": "d", "label": 0, "gold": 0},
    ]
    with pytest.raises(BadInput, match="2 questions but 1 labels"):
        piqa([questions, "1\n"])


@pytest.mark.parametrize(("labels", "key", "gold"), [("ABCDE", "C", 2), ("1234", "4", 3), ("ABC", "A", 0)])
def test_arc_takes_letters_digits_and_any_number_of_choices(labels: str, key: str, gold: int) -> None:
    choices = [{"text": f"t{label}", "label": label} for label in labels]
    (row,) = arc([lines({"id": "x", "question": {"stem": "why?", "choices": choices}, "answerKey": key})])
    assert row["question"] == "why?"
    assert row["choices"] == {"text": [f"t{label}" for label in labels], "label": list(labels)}
    assert (row["answerKey"], row["gold"]) == (key, gold)


def test_winogrande_keeps_its_fields() -> None:
    source = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "2"}
    assert list(winogrande([lines(source)])) == [{**source, "gold": 1}]


def test_boolq_is_taken_apart() -> None:
    source = {"query": "Passage: Some\nQuestion: words here.\nQuestion: is it so?", "choices": ["no", "yes"], "gold": 1}
    (row,) = boolq([lines(source)])
    assert row == {"passage": "Some\nQuestion: words here.", "question": "is it so", "label": 1, "gold": 1}
    with pytest.raises(BadInput, match="BoolQ query"):
        list(boolq([lines({"query": "no mark", "gold": 0})]))


def test_hellaswag_has_six_lines_an_item() -> None:
    (row,) = hellaswag(["Cooking: he\n2\na\nb\nc\nd\n"])
    assert row == {"query": "Cooking: he", "choices": ["a", "b", "c", "d"], "label": 2, "gold": 2}
    with pytest.raises(BadInput, match="file has 7 lines"):
        list(hellaswag(["x\n" * 7]))


def test_files_may_be_compressed_or_not(tmp_path: Path) -> None:
    text = "Cooking: he\n0\na\nb\nc\nd\n"
    packed = tmp_path / TASKS["hellaswag"].files[0]
    packed.parent.mkdir()
    packed.with_suffix("").write_text(text)
    plain = read_rows(TASKS["hellaswag"], tmp_path)
    packed.with_suffix("").unlink()
    packed.write_bytes(bz2.compress(text.encode()))
    assert read_rows(TASKS["hellaswag"], tmp_path) == plain


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"dev\.jsonl"):
        read_rows(TASKS["winogrande"], tmp_path)
    file = tmp_path / TASKS["winogrande"].files[0]
    file.parent.mkdir()
    for content in (b"not gzip", gzip.compress(b"not json"), gzip.compress(b'{"sentence": "s"}\n')):
        file.write_bytes(content)
        with pytest.raises(BadInput, match="winogrande"):
            read_rows(TASKS["winogrande"], tmp_path)
