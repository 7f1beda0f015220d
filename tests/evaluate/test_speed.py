import sys
from time import sleep

import pytest

from bitwright.evaluate.speed import generation_speed, peak_rss_bytes


def test_speed_is_the_median_after_a_warm_up() -> None:
    pauses = iter([0.5, 0.02, 0.2, 0.02])  # the first is the warm-up

    def generate() -> int:
        sleep(next(pauses))
        return 10

    speed = generation_speed(generate)
    assert speed.runs == 3
    assert 250 < speed.median <= speed.fastest <= 500
    assert speed.slowest <= 50


@pytest.mark.skipif(sys.platform == "darwin", reason="no /proc")
def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_rss_bytes()
    block = bytearray(b"x") * (before + 50_000_000)
    after = peak_rss_bytes()
    assert after >= before + 50_000_000
    del block
    assert peak_rss_bytes() >= after
