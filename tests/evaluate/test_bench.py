from pathlib import Path

import pytest

from bitwright.errors import BadInput, Refused
from bitwright.evaluate.bench import DECODED, Lengths, Roofline, rates
from bitwright.evaluate.llama_cpp import LlamaCpp


class Clock:
    """A machine of known speed that notes when it is asked."""

    def __init__(self, name: str, log: list[str], rate: float) -> None:
        self.name, self.log, self.rate = name, log, rate

    def decode(self, context: int, tokens: int) -> float:
        self.log.append(f"{self.name}{context}")
        return tokens / self.rate * (1 + context / 1000)

    def prefill(self, tokens: int) -> float:
        self.log.append(f"{self.name}p{tokens}")
        return tokens / self.rate / 10


def test_machines_take_turns_and_the_first_round_warms_up() -> None:
    log: list[str] = []
    slow, quick = Clock("a", log, 100.0), Clock("b", log, 200.0)
    found = rates([slow, quick], Lengths.of(2048), rounds=3)
    assert log == ["a16", "b16", "a1000", "b1000", "ap512", "bp512"] * 4
    assert found[0].decode == pytest.approx(100 / 1.016)
    assert found[1].context_1000 == pytest.approx(100)
    assert found[1].prefill == pytest.approx(2000)


def test_short_models_are_asked_for_less() -> None:
    assert Lengths.of(256) == Lengths(16, 256 - DECODED - 1, 256)
    with pytest.raises(Refused, match="reads only 20"):
        Lengths.of(20)


def test_the_roofline_is_the_slower_of_reading_and_computing() -> None:
    assert Roofline(1e9, 1e12, 10**6, 10**8).tokens_per_second == pytest.approx(1000)
    assert Roofline(1e9, 1e10, 10**6, 10**8).share(25) == pytest.approx(0.25)


def test_a_rival_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    with pytest.raises(BadInput, match="there is no file"):
        LlamaCpp(tmp_path / "none.gguf", 1)
