"""The trellis: words of any row, the distortion that it was made for, and a search that is as good as it says."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import BadField, Refused
from bitwright.formats import _words
from bitwright.formats._tables import STEPS, TABLES
from bitwright.formats.trellis import PER_WORD, Trellis

_core = pytest.importorskip("bitwright._core")
DISTORTION = {
    12: 0.00147,
    16: 0.0063,
    20: 0.0175,
    24: 0.0352,
    28: 0.0567,
    32: 0.0806,
    40: 0.1362,
    48: 0.1911,
    56: 0.2431,
    64: 0.2904,
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(per_word: int) -> torch.Tensor:
    half = torch.frombuffer(bytearray.fromhex(TABLES[per_word]), dtype=torch.int8).float()
    return torch.cat([half, -half])


@pytest.mark.parametrize("per_word", PER_WORD)
def test_error_of_gaussian_numbers(per_word: int) -> None:
    x = normal(256, 8 * per_word)
    windows = _words.nearest(x / STEPS[per_word], values(per_word), per_word)
    error = (x - values(per_word)[windows] * STEPS[per_word]).square().mean()
    assert 4.0 ** (-64 / per_word) < error < 1.02 * DISTORTION[per_word]


@pytest.mark.parametrize("per_word", PER_WORD)
def test_entries_of_a_table_differ(per_word: int) -> None:
    assert len(values(per_word).unique()) == 128


@given(per_word=st.sampled_from(PER_WORD), rows=st.integers(1, 20), words=st.integers(1, 3), cut=st.integers(0, 11))
@settings(max_examples=40, deadline=None)
def test_any_words_are_windows_and_back(per_word: int, rows: int, words: int, cut: int) -> None:
    plane = torch.randint(0, 256, (-(-rows // 16), words, 128), dtype=torch.uint8)
    shape = (rows, words * per_word - cut)
    windows = _words.unpack_windows(plane, per_word, shape)
    packed = _words.pack_windows(windows, per_word)
    assert torch.equal(_words.unpack_windows(packed, per_word, shape), windows)
    if cut == 0 and rows % 16 == 0:
        assert torch.equal(packed, plane)


@pytest.mark.parametrize("per_word", PER_WORD)
def test_neighbouring_windows_overlap_around_the_word(per_word: int) -> None:
    windows = _words.nearest(normal(16, per_word) / STEPS[per_word], values(per_word), per_word)
    starts = [64 * i // per_word for i in range(per_word + 1)]
    for i in range(per_word):
        advance = starts[i + 1] - starts[i]
        assert torch.equal(windows[:, i] >> advance, windows[:, (i + 1) % per_word] & (127 >> advance))


def test_search_finds_the_best_end_of_a_word() -> None:
    """Where only the last four columns count, they are as near as any way through four windows brings them."""
    table, x = values(16), normal(8, 16, seed=3) / STEPS[16]
    importance = torch.zeros(1, 16)
    importance[:, 12:] = 1
    found = ((x - table[_words.nearest(x, table, 16, importance)]) ** 2 * importance).sum(1)
    best = torch.full((8,), torch.inf)
    for first in range(128):
        for tail in itertools.product(range(16), repeat=2):
            path = [first]
            for new in tail:
                path.append(path[-1] >> 4 | new << 3)
            last = (path[-1] >> 4) | torch.arange(16) << 3
            error = ((x[:, 12:15] - table[path]) ** 2).sum(1) + ((x[:, 15:] - table[last]) ** 2).amin(1)
            best = torch.minimum(best, error)
    assert torch.allclose(found, best, rtol=1e-5)


@pytest.mark.parametrize("per_word", [12, 16, 20, 24, 28, 40, 64])
def test_compensated_search_beats_rounding_in_its_own_metric(per_word: int) -> None:
    x = normal(64, per_word, seed=1) / STEPS[per_word]
    u = torch.eye(per_word) + 0.3 * normal(per_word, per_word, seed=2).triu(1)
    table = values(per_word)

    def loss(windows: torch.Tensor) -> float:
        return float(torch.linalg.solve_triangular(u, x - table[windows], upper=True, left=False).square().sum())

    plain, joint = _words.nearest(x, table, per_word), _words.nearest(x, table, per_word, u=u)
    assert loss(joint) < 0.65 * loss(plain)
    assert torch.equal(_words.nearest(x, table, per_word, u=torch.eye(per_word)), plain)


@pytest.mark.parametrize("per_word", PER_WORD)
def test_levels_and_threads_choose_the_same_words(per_word: int) -> None:
    x, u = normal(37, 2 * per_word + 3).numpy(), torch.eye(per_word) + 0.2 * normal(per_word, per_word).triu(1)
    importance, table = normal(37, 2 * per_word + 3, seed=4).abs().numpy(), values(per_word) * STEPS[per_word]
    word = x[:, :per_word].copy()
    before, results = _core.isa(), []
    for isa in _core.cpu_info()["levels"]:
        _core.set_isa(isa)
        for threads in (1, 2):
            plain = _core.encode_trellis(x, table, per_word, importance, None, threads)
            results.append((plain.tolist(), _core.encode_trellis(word, table, per_word, None, u, threads).tolist()))
    _core.set_isa(before)
    assert all(result == results[0] for result in results)


def test_wrong_settings() -> None:
    for wrong in ({"per_word": 18}, {"group": 40}, {"per_word": 24, "group": 256}, {"group": 0}):
        with pytest.raises(BadField):
            Trellis(**wrong)


def test_says_what_to_do_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import bitwright

    monkeypatch.delattr(bitwright, "_core", raising=False)
    monkeypatch.setitem(sys.modules, "bitwright._core", None)
    with pytest.raises(Refused, match="compiler"):
        Trellis().encode(normal(2, 32), {"scale": torch.ones(2, 1)})
    codes = torch.zeros(2, 32, dtype=torch.int32)
    assert Trellis().decode(codes, {"scale": torch.ones(2, 1)}).shape == (2, 32)


def test_words_that_cannot_be_encoded() -> None:
    x, table = normal(2, 24).numpy(), values(24).numpy()
    for per_word in (10, 65):
        with pytest.raises(ValueError, match="per_word must be 11 to 64"):
            _core.encode_trellis(x, table, per_word)
    assert _core.encode_trellis(x, table, 11).shape == (2, 24)
