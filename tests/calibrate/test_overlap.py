"""Texts that were calibrated on are recognised at any offset, others are not."""

import torch

from bitwright.calibrate.overlap import MOST, RUN, SHARED, fingerprints, shared


def _text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (tokens,), generator=torch.Generator().manual_seed(seed))


def test_a_text_is_found_in_itself_at_any_offset() -> None:
    text = _text(8192, 0)
    kept = fingerprints(text.view(16, 512))
    assert len(kept) == 8192 // RUN
    assert shared(text.view(4, 2048), kept) == 1.0
    moved = text[5 : 5 + 7168].view(7, 1024)
    assert 0.8 < shared(moved, kept) < 0.95  # what lies inside; runs that a window's border cuts are not found


def test_other_texts_share_nothing() -> None:
    assert shared(_text(8192, 1).view(4, 2048), fingerprints(_text(8192, 0).view(16, 512))) == 0.0


def test_a_tenth_of_a_text_is_enough_to_be_seen() -> None:
    text, other = _text(10_240, 0), _text(8192, 1)
    other[:1024] = text[2048:3072]
    assert shared(other.view(4, 2048), fingerprints(text.view(20, 512))) > SHARED


def test_long_texts_keep_a_bounded_sample_and_short_ones_nothing() -> None:
    assert len(fingerprints(_text(MOST * RUN * 2, 0).view(-1, 512))) == MOST
    assert fingerprints(_text(2 * (RUN - 1), 0).view(2, -1)) == ()
    assert shared(_text(RUN - 1, 0)[None], ("0" * 16,)) == 0.0
