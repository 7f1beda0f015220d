"""One number that repairs over-confidence: the temperature that minimises the nll of softmax(logits / temperature)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import WorkFailed

STEPS = 50


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The best temperature on held-out `logits` float32 [n, V] with `targets` int64 [n].

    The nll is convex in b = 1 / temperature, so Newton's method in b from 1, kept within a factor 2 a step, finds it.
    A value near 1.2 means over-confidence that the one stored scalar 1 / temperature repairs; accuracy cannot change.
    Raises `WorkFailed` where no finite optimum exists (every target right or at random).
    """
    b = 1.0
    shifted = logits - logits.amax(-1, keepdim=True)
    wanted = shifted.gather(1, targets[:, None]).mean(dtype=torch.float64)
    for _ in range(STEPS):
        p = torch.softmax(shifted * b, -1)
        mean = torch.linalg.vecdot(p, shifted).double()
        slope = float(mean.mean() - wanted)
        curvature = float((torch.linalg.vecdot(p, shifted.square()).double() - mean.square()).mean())
        step = min(max(b - slope / max(curvature, 1e-12), b / 2), b * 2)
        if abs(step - b) < 1e-6 * b:
            return 1.0 / step
        b = step
    raise WorkFailed(f"no temperature fits these {len(targets)} tokens: the best one is not finite; give more text.")
