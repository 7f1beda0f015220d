"""The harness itself on handmade files: no network, no downloaded data."""

import json
from pathlib import Path

import pytest
import torch

from bitwright.errors import BadInput, Refused, UnknownName
from bitwright.evaluate.task_data import TASKS
from bitwright.evaluate.tasks import data_folder, run_tasks

pytest.importorskip("lm_eval")

CHOICES = [{"text": t, "label": k} for t, k in zip(("red", "a long blue", "grey", "sky"), "ABCD", strict=True)]
ARC = [
    {"question": {"stem": f"what is {i}?", "choices": CHOICES[: 3 + i % 2]}, "answerKey": "ABC"[i]} for i in range(3)
]
PIQA = [{"goal": f"do {i}", "sol1": f"use {i * 7}", "sol2": "wait a little longer"} for i in range(4)]
FILES: dict[str, str | list[dict[str, object]]] = {
    "lambada_openai/lambada_test.jsonl": [{"text": "he said to her hello"}, {"text": "one two three"}],
    "piqa/valid.jsonl": PIQA,
    "piqa/valid-labels.lst": "0\n1\n1\n0\n",
    "arc/ARC-Easy-Test.jsonl": ARC,
    "arc/ARC-Challenge-Test.jsonl": ARC[:2],
    "winogrande/dev.jsonl": [
        {"sentence": "Ann saw Bea so _ ran.", "option1": "Ann", "option2": "Bea", "answer": str(1 + i)}
        for i in range(2)
    ],
    "boolq/boolq_dev.jsonl": [{"query": f"Passage: p{i}.\nQuestion: q{i}?", "gold": i} for i in range(2)],
    "hellaswag/hellaswag_val_full.txt": "Cooking: he\n2\nstirs\neats it\nsleeps\nruns\n" * 2,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return tmp_path


def test_all_tasks_by_the_prompts_and_metrics_of_the_harness(bigram, tokenizer, data: Path) -> None:
    model = bigram()
    seen: list[tuple[int, int]] = []
    found = run_tasks(
        model, tokenizer, ["lambada", *TASKS][1:], data=data, progress=lambda done, of: seen.append((done, of))
    )
    assert list(found) == list(TASKS)
    assert [found[name]["n"] for name in TASKS] == [2, 4, 3, 2, 2, 2, 2]
    assert {name for name, score in found.items() if "acc_norm" in score} == {
        *("piqa", "arc_easy", "arc_challenge", "hellaswag")
    }
    assert all(-1 <= found[name]["balance"] <= 1 for name in found if name != "lambada_openai")
    assert seen[-1][0] == seen[-1][1]
    assert found["winogrande"]["acc"] == 0.5  # the same two sentences, once for each answer
    json.dumps(found, allow_nan=False)


def test_accuracy_is_that_of_likelihoods_one_by_one(bigram, tokenizer, data: Path) -> None:
    model = bigram()

    def likelihood(context: str, continuation: str) -> float:
        ids = torch.tensor(tokenizer.encode(context + continuation))
        logs = torch.log_softmax(model(ids[None, :-1]).logits[0], -1)
        return sum(float(logs[i - 1, ids[i]].detach()) for i in range(len(context), len(ids)))

    hits, normed = [], []
    for row, label in zip(PIQA, (0, 1, 1, 0), strict=True):
        options = [f" {row['sol1']}", f" {row['sol2']}"]
        scores = [likelihood(f"Question: {row['goal']}\nAnswer:", option) for option in options]
        hits.append(scores.index(max(scores)) == label)
        by_length = [score / (len(option) - 1) for score, option in zip(scores, options, strict=True)]
        normed.append(by_length.index(max(by_length)) == label)
    found = run_tasks(bigram(), tokenizer, ["piqa"], data=data)["piqa"]
    assert found["acc"] == sum(hits) / 4
    assert found["acc_norm"] == sum(normed) / 4
    p = found["acc"]
    assert found["acc_stderr"] == pytest.approx((p * (1 - p) / 3) ** 0.5)


def test_without_the_harness_it_says_what_to_install(bigram, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.evaluate.tasks.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install bitwright\[eval\]"):
        run_tasks(bigram(), tokenizer, ["piqa"])


def test_limit_takes_the_first_items(bigram, tokenizer, data: Path) -> None:
    assert run_tasks(bigram(), tokenizer, ["piqa"], data=data, limit=2)["piqa"]["n"] == 2


def test_what_is_missing_is_said(bigram, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="'arc_easy'"):
        run_tasks(bigram(), tokenizer, ["arc_eazy"], data=tmp_path)
    with pytest.raises(BadInput, match="no task is named"):
        run_tasks(bigram(), tokenizer, [], data=tmp_path)
    monkeypatch.delenv("BITWRIGHT_TASKS_DATA", raising=False)
    with pytest.raises(BadInput, match="--tasks-data"):
        data_folder()
    with pytest.raises(BadInput, match="no folder"):
        data_folder(tmp_path / "nowhere")
    monkeypatch.setenv("BITWRIGHT_TASKS_DATA", str(tmp_path))
    assert data_folder() == tmp_path


@pytest.mark.parametrize("name", list(TASKS))
def test_published_files_have_the_layout(bigram, tokenizer, name: str) -> None:
    shared = Path(__file__).parents[2] / "../shared/data/tasks"
    if not shared.is_dir():
        pytest.skip("the published files are not here")
    from bitwright.evaluate.task_data import read_rows

    published = {"lambada_openai": 5153, "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172}
    published |= {"winogrande": 1267, "boolq": 3270, "hellaswag": 10042}
    rows = read_rows(TASKS[name], shared)
    assert len(rows) == published[name]
    assert name == "lambada_openai" or all(0 <= row["gold"] < 5 for row in rows)


def test_what_needs_the_same_logits_is_read_once(bigram, tokenizer) -> None:
    from bitwright.evaluate.harness import HarnessModel

    read: list[torch.Tensor] = []
    model = bigram()
    model.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    asked = [([1, 2, 3], [4]), ([1, 2, 3], [5]), ([1, 2], [3, 4]), ([9], [8])]
    found = HarnessModel(model, tokenizer, 64)._loglikelihood_tokens([(("", ""), *pair) for pair in asked])
    assert [row.tolist() for row in read] == [[[1, 2, 3], [9, 256, 256]]]
    logs = model(torch.tensor([[1, 2, 3], [9, 256, 256]])).logits.log_softmax(-1)
    wanted = [logs[0, 2, 4], logs[0, 2, 5], logs[0, 1, 3] + logs[0, 2, 4], logs[1, 0, 8]]
    torch.testing.assert_close(torch.tensor([score for score, _ in found]), torch.stack(wanted).detach())
