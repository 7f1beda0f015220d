import json
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import BadInput, UnknownName, WorkFailed
from bitwright.evaluate.protocol import Protocol, Text, prepare
from bitwright.evaluate.run import Candidate, compare, evaluate, recalibrate

WORDS = "the quick brown fox jumps over the lazy dog and runs away "


@pytest.fixture
def measured(tokenizer) -> tuple[Protocol, Tensor]:
    return prepare(tokenizer, Text("fox", WORDS * 30), window=128, limit=6)


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    changing = ("seconds", "peak_rss_bytes")
    return {k: v for k, v in a.items() if k not in changing} == {k: v for k, v in b.items() if k not in changing}


def test_perplexity_is_that_of_plain_torch(bigram, measured) -> None:
    protocol, windows = measured
    model = bigram()
    with torch.no_grad():
        logits = torch.cat([model(window[None]).logits[0, :-1] for window in windows])
    nll = nn.functional.cross_entropy(logits.double(), windows[:, 1:].reshape(-1)).item()
    told = evaluate(model, windows, protocol).to_json()
    assert told["perplexity"] == pytest.approx(exp(nll), rel=1e-6)
    assert told["word_perplexity"] == pytest.approx(exp(nll * told["tokens"] / protocol.words), rel=1e-6)
    assert (told["windows"], told["tokens"]) == (6, 6 * 127)


def test_keys_are_stable_and_nulls_say_what_was_not_measured(bigram, measured) -> None:
    protocol, windows = measured
    alone = evaluate(bigram(), windows, protocol).to_json()
    beside = evaluate(bigram(noise=1.0), windows, protocol, reference=bigram()).to_json()
    assert alone.keys() == beside.keys()
    wanted = "perplexity windows kl_mean kl_median kl_p99 top1_agreement brier ece balance tokens seconds protocol"
    assert set(wanted.split()) <= alone.keys()
    assert alone["kl_mean"] is alone["perplexity_difference"] is alone["reference"] is None
    assert alone["ece"] is None  # 762 tokens are too few
    assert beside["kl_mean"] > 0
    assert beside["top1_agreement"] < 1
    assert beside["perplexity_difference_se"] > 0
    assert beside["reference"]["perplexity"] == alone["perplexity"]
    json.dumps(beside, allow_nan=False)


def test_the_reference_runs_once_a_window_for_all(bigram, measured) -> None:
    protocol, windows = measured
    models = {"float": bigram(), "a": bigram(noise=0.1), "b": bigram(noise=0.5)}
    results = compare({k: Candidate(m) for k, m in models.items()}, windows, protocol, reference="float")
    assert list(results) == ["float", "a", "b"]
    assert [model.calls for model in models.values()] == [6, 6, 6]
    told = {name: result.to_json() for name, result in results.items()}
    assert told["a"]["kl_mean"] < told["b"]["kl_mean"]
    assert told["float"]["kl_mean"] is None
    alone = evaluate(models["b"], windows, protocol, reference=models["float"]).to_json()
    assert alone["kl_mean"] == told["b"]["kl_mean"]


def test_an_interrupted_measurement_goes_on_where_it_stopped(bigram, measured, tmp_path: Path) -> None:
    protocol, windows = measured
    models = {"q": bigram(noise=0.2), "float": bigram()}
    candidates = {name: Candidate(model, name) for name, model in models.items()}
    whole = compare(candidates, windows, protocol, reference="float")

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(candidates, windows, protocol, reference="float", cache=tmp_path, progress=stop)
    before = models["q"].calls
    resumed = compare(candidates, windows, protocol, reference="float", cache=tmp_path)
    assert models["q"].calls - before == 2
    assert all(same(whole[name].to_json(), resumed[name].to_json()) for name in whole)


def test_finished_windows_count_for_a_longer_measurement(bigram, measured, tmp_path: Path) -> None:
    protocol, windows = measured
    model = bigram()
    compare({"m": Candidate(model, "m")}, windows[:2], replace(protocol, windows=2), cache=tmp_path)
    compare({"m": Candidate(model, "m")}, windows, protocol, cache=tmp_path)
    assert model.calls == 6


def test_a_model_whose_windows_are_done_is_not_even_loaded(bigram, measured, tmp_path: Path) -> None:
    protocol, windows = measured
    names = ("float", "q")
    first = compare({n: Candidate(bigram(), n) for n in names}, windows, protocol, reference="float", cache=tmp_path)

    def load() -> nn.Module:
        raise AssertionError("loaded")

    again = compare({n: Candidate(load, n) for n in names}, windows, protocol, reference="float", cache=tmp_path)
    assert same(first["q"].to_json(), again["q"].to_json())


def test_another_model_or_parent_is_measured_anew(bigram, measured, tmp_path: Path) -> None:
    protocol, windows = measured
    q = bigram(noise=0.1)

    def run(model: str | None, parent: str) -> None:
        candidates = {"q": Candidate(q, model), "float": Candidate(bigram(), parent)}
        compare(candidates, windows, protocol, reference="float", cache=tmp_path)

    for expected, (model, parent) in enumerate([("q", "f"), ("q", "g"), ("r", "f"), (None, "f"), (None, "f")], 1):
        run(model, parent)
        assert q.calls == 6 * expected
    run("q", "f")
    assert q.calls == 30


def test_a_damaged_window_is_named(bigram, measured, tmp_path: Path) -> None:
    protocol, windows = measured
    compare({"m": Candidate(bigram(), "m")}, windows[:1], protocol, cache=tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match=file.name):
        compare({"m": Candidate(bigram(), "m")}, windows[:1], protocol, cache=tmp_path)


def test_logits_that_are_not_finite_are_refused(bigram, measured) -> None:
    protocol, windows = measured
    model = bigram()
    model.table.data[int(windows[2, 5])] = float("nan")
    with pytest.raises(WorkFailed, match="not finite in window"):
        evaluate(model, windows, protocol)


def test_two_vocabularies_do_not_compare(bigram, measured) -> None:
    protocol, windows = measured
    with pytest.raises(BadInput, match="257 tokens in its vocabulary"):
        evaluate(bigram(), windows, protocol, reference=bigram(vocabulary=300))


def test_an_unknown_reference_suggests_the_nearest(bigram, measured) -> None:
    protocol, windows = measured
    with pytest.raises(UnknownName, match="'float'"):
        compare({"float": Candidate(bigram())}, windows, protocol, reference="flaot")


def test_progress_counts_windows(bigram, measured) -> None:
    protocol, windows = measured
    seen: list[tuple[int, int]] = []
    evaluate(bigram(), windows, protocol, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_one_temperature_repairs_a_sharpened_model(bigram) -> None:
    model = bigram(vocabulary=40)
    generator = torch.Generator().manual_seed(0)
    window = torch.randint(40, (9, 512), generator=generator)
    for row in window:  # text drawn from the model itself
        for i in range(511):
            p = torch.softmax(model.table[row[i]] * torch.linspace(0.5, 1.0, 512)[i], -1)
            row[i + 1] = torch.multinomial(p, 1, generator=generator)[0]
    model.table.data *= 1.6
    found = recalibrate(model, window)
    assert found.temperature == pytest.approx(1.6, rel=0.15)
    assert found.ece_after < found.ece_before / 2


def test_recalibration_needs_windows_to_fit_and_to_measure(bigram, measured) -> None:
    with pytest.raises(BadInput, match="two windows"):
        recalibrate(bigram(), measured[1][:1])
