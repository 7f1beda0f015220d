"""Words of a trellis: 64 bits hold `per_word` neighbouring columns of a row, each a 7-bit window of the circular word.

The window of column i starts at bit floor(64 i / per_word). A plane is uint8 [tiles, words, 16 rows x 8 bytes], words
little-endian. Columns that a last word lacks constrain nothing; the bits that only they would read are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import Refused
from bitwright.formats._layout import ROWS, tiles

WORD = 64
WORD_BYTES = 8
WINDOW = 7


def words(columns: int, per_word: int) -> int:
    """Words of one row."""
    return -(-columns // per_word)


def _bits_of(per_word: int) -> Tensor:
    """Which bit of the word is bit b of window i, int64 [per_word, 7]."""
    starts = torch.arange(per_word) * WORD // per_word
    return (starts[:, None] + torch.arange(WINDOW)) % WORD


def pack_windows(windows: Tensor, per_word: int) -> Tensor:
    """Windows [R, C] -> uint8 [tiles, words, 128]; padding rows are 0."""
    rows, columns = windows.shape
    count = words(columns, per_word)
    padded = torch.zeros(tiles(rows) * ROWS, count * per_word, dtype=torch.uint8)
    padded[:rows, :columns] = windows
    spread = padded.view(-1, count, per_word)
    bits = torch.zeros(*spread.shape[:2], WORD, dtype=torch.uint8)
    for column, places in enumerate(_bits_of(per_word)):
        # Windows of one word agree in the bits that they share; a column the word lacks has none set.
        bits[..., places] |= (spread[..., column, None] >> torch.arange(WINDOW, dtype=torch.uint8)) & 1
    powers = 1 << torch.arange(8, dtype=torch.uint8)
    packed = (bits.view(*bits.shape[:2], WORD_BYTES, 8) * powers).sum(3, dtype=torch.uint8)
    lanes = packed.view(-1, ROWS, count, WORD_BYTES).transpose(1, 2)
    return lanes.reshape(-1, count, ROWS * WORD_BYTES).contiguous()


def unpack_windows(plane: Tensor, per_word: int, shape: tuple[int, int]) -> Tensor:
    """Inverse of `pack_windows`: uint8 [R, C]."""
    rows, columns = shape
    packed = plane.view(plane.shape[0], -1, ROWS, WORD_BYTES).transpose(1, 2).reshape(-1, plane.shape[1], WORD_BYTES)
    start = torch.arange(per_word) * WORD // per_word
    low, high = packed[..., start // 8], packed[..., (start // 8 + 1) % WORD_BYTES]
    shift = (start % 8).to(torch.uint8)
    # A window lies in two neighbouring bytes; a shift by 8 of the second gives 0 where the first holds all of it.
    windows = ((low >> shift) | (high.to(torch.int16) << (8 - shift.to(torch.int16))).to(torch.uint8)) & 127
    return windows.reshape(len(windows), -1)[:rows, :columns].contiguous()


def nearest(
    x: Tensor, table: Tensor, per_word: int, importance: Tensor | None = None, u: Tensor | None = None
) -> Tensor:
    """Windows int32 [R, C] whose values in `table` [128] are nearest to `x` [R, C], word by word (Viterbi algorithm).

    `importance` [1 or R, C] weighs squared errors. With `u` [C, C] upper triangular, C <= per_word, the errors e,
    x - value = e u, have the least sum of squares: each path of the search carries its own errors and compensates them
    in the columns to come. `Refused` in an installation without compiled code.
    """
    try:
        from bitwright import _core
    except ImportError as error:
        raise Refused(
            f"choosing the words of a trellis needs the compiled extension ({error}): install bitwright with a C++ "
            "compiler, or choose an integer format."
        ) from None
    x = x.float().nan_to_num(0.0).contiguous()
    weights = None if importance is None else importance.float().expand_as(x).contiguous()
    # Only ratios count; a mean of 1 keeps squares inside float32.
    metric = None if u is None else (u / u.diagonal().mean()).float().contiguous()
    windows = _core.encode_trellis(x, table, per_word, weights, metric, torch.get_num_threads())
    return torch.from_numpy(windows).to(torch.int32)
