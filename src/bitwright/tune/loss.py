"""What the packed model is to learn: the float model's next tokens, the text's, or the float model's hidden states."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.learning import LOSSES, Learning
from bitwright.runtime import native

COMPILED = (torch.float32, torch.bfloat16)
CHUNK = 1 << 20  # logits that are held in float32 at a time


def needs_teacher(learning: Learning) -> bool:
    """Whether the float model must run beside the student."""
    return bool(learning.divergence or learning.hidden)


def objective(student: Any, teacher: Any, ids: Tensor, learning: Learning) -> Tensor:
    """Weighted sum of losses of a sequence int64 [T], nats a token.

    `student` and `teacher` (None where not needed) are outputs of transformers for a batch of one; the teacher's
    logits are used up.
    """
    parts = {"divergence": _followed, "entropy": _next_token, "hidden": _hidden}
    asked = [(getattr(learning, name), parts[name]) for name in LOSSES]
    return torch.stack([weight * part(student, teacher, ids, learning) for weight, part in asked if weight]).sum()


def _followed(student: Any, teacher: Any, ids: Tensor, learning: Learning) -> Tensor:
    # Not [0]: the gradient of that is a tensor of zeros with one part filled.
    return divergence(student.logits.squeeze(0), teacher.logits.squeeze(0), learning.ambiguity, learning.sharpness)


def _next_token(student: Any, teacher: Any, ids: Tensor, learning: Learning) -> Tensor:
    return F.cross_entropy(student.logits[0, :-1].float(), ids[1:])


def _hidden(student: Any, teacher: Any, ids: Tensor, learning: Learning) -> Tensor:
    """Mean over positions of the sum over blocks of |s - t|^2, states scaled to length 1 (OneBit, arXiv 2402.11295,
    equation 9); the first state, the embedding, is the same in both."""
    pairs = zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True)
    return torch.stack([(_unit(s) - _unit(t)).square().sum(-1).mean() for s, t in pairs]).sum()


def _unit(states: Tensor) -> Tensor:
    return F.normalize(states[0].float(), dim=-1)


class _Divergence(torch.autograd.Function):
    """Mean w KL(teacher || student) over positions; the gradient is made in the forward pass, in the teacher's memory.

    Weights w are indicators: no gradient flows through them. It can go backward once.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, ambiguity: float, sharpness: float) -> Tensor:
        """Logits [T, V] of any float type, the teacher's are overwritten -> float32 []."""
        ctx.save_for_backward(teacher)
        if native.available()[0] and student.dtype == teacher.dtype and student.dtype in COMPILED:
            from bitwright import _core

            return torch.tensor(_core.follow(student.detach().contiguous(), teacher, ambiguity, sharpness))
        total = torch.zeros((), dtype=torch.float64)
        rows = max(1, CHUNK // student.shape[1])
        for start in range(0, len(student), rows):
            s, t = student[start : start + rows], teacher[start : start + rows]
            log_p, log_q = t.float().log_softmax(1), s.float().log_softmax(1)
            p = log_p.exp()
            w = 1 + ambiguity * (_entropy(log_p) * _entropy(log_q)) ** sharpness if ambiguity else None
            found = p * log_p.sub_(log_q)
            total += (found if w is None else found.mul_(w)).sum(dtype=torch.float64)
            gradient = log_q.exp_().sub_(p).div_(len(student))
            t.copy_(gradient if w is None else gradient.mul_(w))
        return (total / len(student)).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """w (student - teacher) / positions."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream), None, None, None


def _entropy(log_p: Tensor) -> Tensor:
    """[T, V] -> [T, 1], as a share of the largest possible."""
    return -(log_p.exp() * log_p).nansum(1, keepdim=True).clamp(max=0) / math.log(log_p.shape[1])


def divergence(student: Tensor, teacher: Tensor, ambiguity: float = 0.0, sharpness: float = 1.0) -> Tensor:
    """Mean over positions of w KL(teacher || student), nats, from logits [T, V]; `teacher` is used up.

    w = 1 + ambiguity * (H(teacher) H(student))^sharpness with entropies as shares of log V: deviation-aware
    distillation (DB-LLM, arXiv 2402.11960) up to the teacher's entropy, which has no gradient. Memory beside the
    logits does not grow with T. At ambiguity 0 it is distillation at temperature 1 (Hinton et al., arXiv 1503.02531).
    """
    found: Tensor = _Divergence.apply(student, teacher, ambiguity, sharpness)  # type: ignore[no-untyped-call]
    return found
