"""Scales of one-bit planes that are added up: greedy, by magnitude, or by alternating least squares.

Parameters are named by plane: "scale", "min", "column" of the first, "scale1", "min1", "column1" of the second, ...
A plane's value is (scale * code + min) * column; column scales that are missing are those of the first plane, or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats import _fit
from bitwright.formats._affine import AffineCodes
from bitwright.groups import Params

SPLITS = 81  # break-points that are tried: 10 % to 90 % of the entries


@dataclass(frozen=True)
class Plane(AffineCodes):
    """Storage of one plane; `low` is min / scale, None where mins are stored."""

    group: int | None
    low: float | None

    @property
    def levels(self) -> int:
        """Two."""
        return 2

    @property
    def offset(self) -> float | None:
        """As given."""
        return self.low


def named(role: str, plane: int) -> str:
    """Name of a role in the planes after the first."""
    return role if plane == 0 else f"{role}{plane}"


def of_plane(params: Params, plane: int) -> Params:
    """Scale and min of one plane."""
    return {"scale": params[named("scale", plane)], "min": params[named("min", plane)]}


def _column(params: Params, plane: int) -> Tensor | None:
    return params.get(named("column", plane), params.get("column"))


def value(codes: Tensor, params: Params, order: int) -> Tensor:
    """What codes stand for, in float32: bit i of a code belongs to plane i."""
    total: Tensor | None = None
    for i in range(order):
        part = _fit.value((codes >> i) & 1, of_plane(params, i))
        column = _column(params, i)
        part = part if column is None else part * column
        total = part if total is None else total + part
    assert total is not None
    return total


def nearest(w: Tensor, params: Params, order: int) -> Tensor:
    """Codes int32 nearest to `w`; the smallest of equals."""
    every = torch.arange(1 << order, dtype=torch.int32).view(-1, 1, 1)
    distance = (value(every, params, order) - w).abs_()
    codes, least = torch.zeros(distance.shape[1:], dtype=torch.int32), distance[0]
    for code in range(1, 1 << order):
        codes.masked_fill_(distance[code] < least, code)
        least = torch.minimum(least, distance[code])
    return codes


@dataclass(frozen=True)
class Book:
    """What the parameters of a group of `order` planes are: all methods take `w` [R, n], `h` [R, n] weighs errors."""

    order: int
    bit: bool
    mean: bool
    columns: int  # vectors of column scales: 0, 1 or `order`

    @property
    def _offset(self) -> float:
        return 0.0 if self.bit else -0.5

    def _params(self, scales: list[Tensor], constant: Tensor | None, columns: Params) -> Params:
        params = dict(columns)
        for i, scale in enumerate(scales):
            low = scale * self._offset + constant if constant is not None and i == 0 else None
            own = _fit.affine(scale, low, self._offset)
            params |= {named("scale", i): own["scale"], named("min", i): own["min"]}
        return params

    def error(self, w: Tensor, h: Tensor, params: Params) -> Tensor:
        """Weighted squared error of each row at the nearest codes, [R, 1]."""
        rest = w - value(nearest(w, params, self.order), params, self.order)
        return (h * rest**2).sum(1, keepdim=True)

    def greedy(self, w: Tensor, h: Tensor) -> Params:
        """Plane after plane: the weighted mean of |what is left| and its sign (BiLLM, section 3.2)."""
        count = h.sum(1, keepdim=True)
        count = count + (count == 0)
        constant = (h * w).sum(1, keepdim=True) / count if self.mean else None
        rest = w if constant is None else w - constant
        scales = []
        for _ in range(self.order):
            half = (h * rest.abs()).sum(1, keepdim=True) / count
            rest = rest - torch.where(rest < 0, -half, half)
            scales.append(2 * half)
        return self._params(scales, constant, {})

    def split(self, w: Tensor, h: Tensor, shared: bool) -> Params:
        """The break-point of |w| of least error between the means of the smaller and of the larger entries: of each row
        the best of all, or one of `SPLITS` percentiles `shared` by all rows (BiLLM, algorithm 2)."""
        constant = _mean(w, h) if self.mean else None
        size = (w if constant is None else w - constant).abs()
        line, order = size.sort(1)
        weight, sums = h.gather(1, order).cumsum(1), (h * size).gather(1, order).cumsum(1)
        above, rest = weight[:, -1:] - weight, sums[:, -1:] - sums
        gain = sums**2 / weight.clamp(min=1e-30) + torch.where(above > 0, rest**2 / above.clamp(min=1e-30), 0.0)
        at = self._shared(size[h > 0], line, gain) if shared else gain.argmax(1, keepdim=True)
        inner = sums.gather(1, at) / weight.gather(1, at).clamp(min=1e-30)
        outer = torch.where(above.gather(1, at) > 0, rest.gather(1, at) / above.gather(1, at).clamp(min=1e-30), inner)
        return self._params([outer + inner, outer - inner], constant, {})

    @staticmethod
    def _shared(counted: Tensor, line: Tensor, gain: Tensor) -> Tensor:
        """Of each row the last place of its sorted `line` that is below the best break-point, [R, 1]."""
        if counted.numel() == 0:
            return torch.zeros(len(line), 1, dtype=torch.int64)
        # Of large groups every k-th entry is enough for percentiles.
        sample = counted[:: 1 + counted.numel() // 100_000].float()
        points = torch.quantile(sample, torch.linspace(0.1, 0.9, SPLITS)).to(line.dtype)
        places = torch.searchsorted(line.contiguous(), points.expand(len(line), SPLITS).contiguous()) - 1
        # Nothing below it and everything below it are the same split: none.
        gains = torch.where(places < 0, gain[:, -1:], gain.gather(1, places.clamp(min=0)))
        best = gains.sum(0).argmax()
        places = torch.where(places < 0, line.shape[1] - 1, places)
        return places[:, best : best + 1]

    def alternate(self, w: Tensor, h: Tensor, rounds: int) -> Params:
        """Nearest codes and least-squares scales in turn (ARB-LLM, algorithm 1); no round makes a row worse."""
        w, h = w.float().contiguous(), h.float().contiguous()  # equal bits whatever the caller's strides
        columns = {named("column", i): torch.ones(1, w.shape[1]) for i in range(self.columns)}
        best = self._start(w, h) | columns
        least = self.error(w, h, best)
        for _ in range(rounds):
            codes = nearest(w, best, self.order)
            trial = self._row_scales(w, h, codes, best)
            if self.columns:
                trial = self._row_scales(w, h, codes, self._column_scales(w, h, codes, trial))
            error = self.error(w, h, trial)
            if self.columns:  # shared by all rows: taken or left as a whole
                better = (error.sum() < least.sum()).expand_as(error)
            else:
                better = error < least
            if not bool(better.any()):
                break
            best = {
                k: torch.where(better if v.shape[0] == len(w) else better[:1], trial[k], v) for k, v in best.items()
            }
            least = torch.where(better, error, least)
        return best

    def _start(self, w: Tensor, h: Tensor) -> Params:
        if self.bit:
            return self._bits(w, h)
        return self.split(w, h, shared=False) if self.order == 2 else self.greedy(w, h)

    def _bits(self, w: Tensor, h: Tensor) -> Params:
        """The best uniform grid {-s, 0, s, 2 s} or its mirror image (DB-LLM, section 3.2)."""
        size = (h * w**2).sum(1, keepdim=True) / h.sum(1, keepdim=True).clamp(min=1e-30)
        best: Params = {}
        least = torch.full_like(size, torch.inf)
        for step in torch.linspace(0.5, 1.5, 11).tolist():
            for sign in (1, -1):
                s = sign * step * size.sqrt()
                trial = self._params([2 * s, -s], None, {})
                error = self.error(w, h, trial)
                better = error < least
                best = {k: torch.where(better, v, best.get(k, v)) for k, v in trial.items()}
                least = torch.where(better, error, least)
        return best

    def _basis(self, codes: Tensor, params: Params) -> Tensor:
        """[p, R, n]: what each parameter of a row is multiplied by."""
        parts = []
        for i in range(self.order):
            part = ((codes >> i) & 1).float() + self._offset
            column = _column(params, i)
            parts.append(part if column is None else part * column)
        if self.mean:
            column = _column(params, 0)
            parts.append(torch.ones_like(parts[0]) if column is None else column.expand_as(parts[0]))
        return torch.stack(parts)

    def _from(self, found: Tensor, params: Params) -> Params:
        scales = [found[:, i : i + 1] for i in range(self.order)]
        columns = {k: v for k, v in params.items() if k.startswith("column")}
        return self._params(scales, found[:, self.order :] if self.mean else None, columns)

    def _row_scales(self, w: Tensor, h: Tensor, codes: Tensor, params: Params) -> Params:
        root = h.sqrt()
        return self._from(_fit.least_squares(self._basis(codes, params) * root, w * root), params)

    def _column_scales(self, w: Tensor, h: Tensor, codes: Tensor, params: Params) -> Params:
        """Least-squares column scales (ARB-LLM, equation 12), of mean 1: their size belongs to the rows."""
        params = dict(params)
        for i in range(self.columns):
            name = named("column", i)
            whole = value(codes, params, self.order)
            if self.columns == 1:
                own = whole / params[name]
            else:
                own = _fit.value((codes >> i) & 1, of_plane(params, i))
            rest = w - whole + own * params[name]
            found = (h * own * rest).sum(0, keepdim=True) / (h * own**2).sum(0, keepdim=True)
            found = torch.where(found.isfinite() & (found > 0), found, 1.0)
            params[name] = _fit.half(found / found.mean())
        return params


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each row, 0 where nothing counts, [R, 1]."""
    total = weight.sum(1, keepdim=True)
    return (weight * x).sum(1, keepdim=True) / torch.where(total == 0, 1.0, total)
