"""Text to tune on: windows of several files or the model's own samples, apart from calibration text, a few held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitwright.artifact.layout import Calibration
from bitwright.calibrate import tokens
from bitwright.calibrate.overlap import fingerprints, occurring
from bitwright.errors import BadInput
from bitwright.models.cache import cache_folder
from bitwright.runtime.load import load_float
from bitwright.tune.settings import Tuning

if TYPE_CHECKING:
    from bitwright.models.source import Source

HELD = 4  # sequences on which the divergence is measured before and after
SAMPLED = 51_200  # tokens of the model's own samples


def windows(job: Tuning, source: Source, seen: Calibration | None, progress: Callable[[str, int, int], None]) -> Tensor:
    """Int64 [S, length] in a shuffled order, without windows that share a run of tokens with `seen`.

    The last `HELD` are for measuring. `BadInput` if there is too little text.
    """
    length = job.length
    found = _read(job, source) if job.data else _sampled(job, source, progress)
    if seen is not None and seen.runs:
        found = found[~occurring(found, seen.runs)]
    if len(found) < HELD + job.learning.batch:
        raise BadInput(
            f"the text gives {len(found)} sequences of {length} tokens that were not calibrated on, "
            f"{HELD + job.learning.batch} are needed: give more text with --data."
        )
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(job.seed))]


def available(job: Tuning, source: Source) -> int:
    """Tokens of the files."""
    return _read(job.fitted(source), source).numel()


def require(job: Tuning, source: Source, found: int, calibration: int) -> None:
    """`BadInput` unless `found` tokens are enough for a step and for measuring beside so many for calibration."""
    least = calibration + (HELD + job.learning.batch) * job.fitted(source).length
    if found < least:
        raise BadInput(
            f"{' and '.join(map(str, job.data))}: {found:,} tokens of text, {least:,} are needed ({calibration:,} to "
            "calibrate, the others to learn from and to measure on): give more text with --data, or fewer --tokens."
        )


def _read(job: Tuning, source: Source) -> Tensor:
    return tokens.of_files(source.tokenizer(), job.data, job.length)


def _sampled(job: Tuning, source: Source, progress: Callable[[str, int, int], None]) -> Tensor:
    length = job.length
    seed = job.seed + 1  # other samples than calibration takes

    def sample() -> Tensor:
        return tokens.self_samples(
            load_float(source.name), source.tokenizer(), SAMPLED, length, seed,
            lambda done, of: progress("sampling text", done, of),
        )  # fmt: skip

    return tokens.cached_tokens(cache_folder(), f"samples-{source.digest()[:16]}-{SAMPLED}-{length}-{seed}", sample)


def described(job: Tuning, ids: Tensor) -> Calibration:
    """How the manifest names the text that was learned from."""
    name = " + ".join(path.name for path in job.data) if job.data else "the model's own samples"
    return Calibration(data=name, sha256=tokens.token_hash(ids), tokens=ids.numel(), runs=fingerprints(ids))


def batch(ids: Tensor, step: int, size: int) -> Tensor:
    """Sequences of a step: all in order, then all again in another order, and so on."""
    count = len(ids)
    chosen = []
    for at in range(step * size, (step + 1) * size):
        turn, place = divmod(at, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(turn)) if turn else None
        chosen.append(place if order is None else int(order[place]))
    return ids[chosen]
