"""Values of each attention head rotated by a Hadamard matrix with random signs (R2 of SpinQuant, arXiv 2405.16406;
QuaRot, arXiv 2404.00456, section 4), which the output projection undoes.

Heads are not asked for: the longest power of two whose rotation leaves the block's output as it was is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.block_task import BlockTask
from bitwright.errors import BadField
from bitwright.transforms._sites import Site, rotate, runs, sites, undone


@dataclass(frozen=True)
class Hadamard:
    """Runs of at most `longest` channels; `seed` of the signs."""

    kind: ClassVar[str] = "hadamard"
    longest: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.longest < 2 or self.longest & (self.longest - 1):
            raise BadField(self, "longest", self.longest, "give a power of two, 2 or more")

    def apply(self, task: BlockTask) -> list[str]:
        """Rotate wherever a linear feeds linears through nothing that tells the channels of a run apart."""
        left: list[str] = []
        for wave, site in sites(task):
            chosen = None if site is None or site.plus is not None else self._longest(task, site)
            if site is None or chosen is None:
                left += wave
            else:
                rotate(task, site, chosen)
        return left

    def _longest(self, task: BlockTask, site: Site) -> Tensor | None:
        n = self.longest
        while n > 1:
            if runs(site, n):
                rotations = self._rotations(site.channels // n, n)
                with undone(task, site.producer, site.consumers) as trial:
                    rotate(task, site, rotations)
                    if trial.holds():
                        return rotations
            n //= 2
        return None

    def _rotations(self, count: int, n: int) -> Tensor:
        """[count, n, n]: random signs, then the normalised Hadamard matrix of Sylvester."""
        generator = torch.Generator().manual_seed(self.seed)
        signs: Tensor = torch.randint(0, 2, (count, n, 1), generator=generator) * 2.0 - 1
        matrix = torch.ones(1, 1)
        while len(matrix) < n:
            matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
        return signs * (matrix / math.sqrt(n))


EXAMPLES = (Hadamard(),)
