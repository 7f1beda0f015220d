"""What the tuned model is to learn: the float model's distribution of the next token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 20  # logits that are held in float32 at a time


class _Divergence(torch.autograd.Function):
    """Mean KL(teacher || student) over positions; the gradient is made in the forward pass, in the teacher's memory."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits [T, V] of any float type, the teacher's are overwritten -> float32 []."""
        total = torch.zeros((), dtype=torch.float64)
        rows = max(1, CHUNK // student.shape[1])
        for start in range(0, len(student), rows):
            s, t = student[start : start + rows], teacher[start : start + rows]
            log_p, log_q = t.float().log_softmax(1), s.float().log_softmax(1)
            p = log_p.exp()
            total += (p * log_p.sub_(log_q)).sum(dtype=torch.float64)
            t.copy_(log_q.exp_().sub_(p).div_(len(student)))
        ctx.save_for_backward(teacher)
        return (total / len(student)).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """(student - teacher) / positions."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over positions of KL(teacher || student), nats, from logits [T, V]; `teacher` is used up.

    Memory beside the logits does not grow with T (Hinton et al., arXiv 1503.02531, at temperature 1).
    """
    found: Tensor = _Divergence.apply(student, teacher)  # type: ignore[no-untyped-call]
    return found
