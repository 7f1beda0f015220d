import sys

import pytest

from bitwright.evaluate.speed import Speed, generation_speed, peak_rss_bytes


def test_speed_is_the_median_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("bitwright.evaluate.speed.perf_counter", lambda: clock[0])
    seconds = iter([50.0, 2.0, 5.0, 1.0])  # the first is the warm-up

    def generate() -> int:
        clock[0] += next(seconds)
        return 10

    assert generation_speed(generate) == Speed(median=5.0, slowest=2.0, fastest=10.0, runs=3)


@pytest.mark.skipif(sys.platform == "darwin", reason="no /proc")
def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_rss_bytes()
    block = bytearray(b"x") * (before + 50_000_000)
    after = peak_rss_bytes()
    assert after >= before + 50_000_000
    del block
    assert peak_rss_bytes() >= after
