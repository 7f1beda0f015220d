"""Least-squares ranges of affine codes: weight ~ scale * code + min, under a weight of each entry."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.groups import Params

LARGEST = 65504.0  # of f16
RIDGE = 1e-6  # of normal equations, relative to their diagonal


def half(x: Tensor) -> Tensor:
    """Float32 values that f16 holds exactly, out-of-range ones clamped."""
    return x.float().nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST).half().float()


def straight_half(x: Tensor) -> Tensor:
    """`half`, with the gradient of the identity (a real cast would round gradients to f16 as well)."""
    return half(x.detach()) + (x - x.detach())


def affine(scale: Tensor, low: Tensor | None, offset: float) -> Params:
    """Parameters as stored: rounded to f16, or with the min that the format's constant offset implies."""
    scale = half(scale)
    return {"scale": scale, "min": scale * offset if low is None else half(low)}


def nearest(w: Tensor, params: Params, levels: int) -> Tensor:
    """Codes int32 nearest to `w`; halves go up, a scale of 0 gives code 0."""
    scale = params["scale"].to(w.dtype)
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    codes = torch.floor((w - params["min"].to(w.dtype)) * inverse + 0.5)
    return codes.nan_to_num(0.0).clamp(0, levels - 1).to(torch.int32)


def value(codes: Tensor, params: Params) -> Tensor:
    """What codes stand for, in float32: multiply, then add."""
    return codes.float() * params["scale"] + params["min"]


def error(w: Tensor, importance: Tensor, params: Params, levels: int) -> Tensor:
    """Weighted squared error of each row, [R, 1]."""
    return (importance * (w - value(nearest(w, params, levels), params)) ** 2).sum(1, keepdim=True)


def extremes(w: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest counted entry of each row, [R, 1]; 0 where none counts."""
    counted = (importance > 0).expand_as(w)
    low = torch.where(counted, w, torch.inf).amin(1, keepdim=True)
    high = torch.where(counted, w, -torch.inf).amax(1, keepdim=True)
    none = ~counted.any(1, keepdim=True)
    return low.masked_fill(none, 0.0), high.masked_fill(none, 0.0)


def minmax(w: Tensor, importance: Tensor, levels: int, offset: float | None) -> tuple[Tensor, Tensor | None]:
    """The range that just covers the counted entries: scale and min (None under a constant offset)."""
    low, high = extremes(w, importance)
    if offset is None:
        return (high - low) / (levels - 1), low
    if offset == -(levels // 2):
        # Levels reach one further down than up: the sign of the scale turns the longer side to the larger extreme.
        widest = torch.where(-low > high, low, high)
        return widest / offset, None
    return torch.maximum(-low, high) / -offset, None


def refit(w: Tensor, importance: Tensor, codes: Tensor, offset: float | None) -> tuple[Tensor, Tensor | None]:
    """Scale and min of least weighted squared error for fixed codes (closed form)."""
    c = codes.float()
    if offset is not None:
        c = c + offset
        return (importance * c * w).sum(1, keepdim=True) / (importance * c * c).sum(1, keepdim=True), None
    n = importance.expand_as(w).sum(1, keepdim=True)
    mean_c = (importance * c).sum(1, keepdim=True) / n
    mean_w = (importance * w).sum(1, keepdim=True) / n
    centred = c - mean_c
    scale = (importance * centred * (w - mean_w)).sum(1, keepdim=True) / (importance * centred**2).sum(1, keepdim=True)
    return scale, mean_w - scale * mean_c


def search(w: Tensor, importance: Tensor, levels: int, offset: float | None, steps: int, rounds: int = 2) -> Params:
    """The best of `steps` narrowed ranges, then `rounds` of alternating least squares; never worse than min-max."""
    constant = 0.0 if offset is None else offset
    scale, low = minmax(w, importance, levels, offset)
    best = affine(scale, low, constant)
    if steps == 0:
        return best
    least = error(w, importance, best, levels)

    def keep(candidate: Params) -> None:
        nonlocal best, least
        trial = error(w, importance, candidate, levels)
        better = trial < least  # False for non-finite candidates
        best = {k: torch.where(better, candidate[k], best[k]) for k in best}
        least = torch.where(better, trial, least)

    middle = None if low is None else low + scale * (levels - 1) / 2
    for step in range(1, steps + 1):
        narrow = 1 - 0.6 * step / steps
        shrunk = None if middle is None else middle - scale * narrow * (levels - 1) / 2
        keep(affine(scale * narrow, shrunk, constant))
    for _ in range(rounds):
        new_scale, new_low = refit(w, importance, nearest(w, best, levels), offset)
        keep(affine(new_scale, new_low, constant))
    return best


def least_squares(basis: Tensor, w: Tensor) -> Tensor:
    """Coefficients [R, p] of least |w - sum_i c_i basis_i|^2 for every row: `basis` [p, R, n], `w` [R, n]."""
    gram = torch.einsum("prn,qrn->rpq", basis, basis)
    right = torch.einsum("prn,rn->rp", basis, w)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # Planes that happen to be equal or empty make the equations singular.
    ridge = RIDGE * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    found: Tensor = torch.linalg.solve(gram + torch.diag_embed(ridge.expand_as(diagonal)), right.unsqueeze(2))
    return found.squeeze(2)
