"""Hessians and their factors."""

from __future__ import annotations

import logging
import math
from threading import Lock

import torch
from torch import Tensor

from bitwright.errors import WorkFailed
from bitwright.rotation import growth, rotated_inputs

log = logging.getLogger(__name__)
STRIP = 1024  # rows rotated at a time: bounds memory


class Hessian:
    """H = (2 / tokens) * sum of x x^T over calibration, float32 [C, C], with its factor computed once.

    `tokens` counts the inputs seen; weights that share their input share the object. `level` is the mean diagonal that
    damping is relative to, without the few tokens of massive activation (None: that of the matrix).
    """

    def __init__(self, matrix: Tensor, tokens: int, level: float | None = None) -> None:
        self.matrix = matrix
        self.tokens = tokens
        self.level = level
        self._factors: dict[float, Tensor] = {}
        self._rotated: Hessian | None = None
        self._lock = Lock()

    @property
    def diagonal(self) -> Tensor:
        """float32 [C]."""
        return self.matrix.diagonal()

    def factor(self, damping: float) -> Tensor:
        """U of `inverse_cholesky`, float64."""
        with self._lock:
            if damping not in self._factors:
                mean = float(self.diagonal.double().mean())
                share = 1.0 if self.level is None or mean == 0 else self.level / mean
                self._factors[damping] = inverse_cholesky(self.matrix, damping * share)[0]
            return self._factors[damping]

    def damped(self, damping: float) -> Tensor:
        """H + damping * level * I, float32 [C, C]: the curvature that solvers without a factor go by."""
        level = float(self.diagonal.double().mean()) if self.level is None else self.level
        found = self.matrix.clone()
        found.diagonal().add_(damping * level)
        return found

    def rotated(self) -> Hessian:
        """That of rotated inputs (`rotation.py`)."""
        with self._lock:
            if self._rotated is None:
                half = torch.cat([rotated_inputs(rows.double()) for rows in torch.split(self.matrix, STRIP)])
                matrix = torch.cat([rotated_inputs(rows.t()).float() for rows in torch.split(half, STRIP, dim=1)])
                level = None if self.level is None else self.level * growth(len(matrix))
                self._rotated = Hessian(matrix, self.tokens, level)
            return self._rotated

    def error(self, rest: Tensor) -> float:
        """tr(D H D^T) of a weight difference D [R, C]: the rise of the layer's squared output error."""
        return float(((rest @ self.matrix) * rest).sum(dtype=torch.float64))


def inverse_cholesky(hessian: Tensor, damping: float = 0.01) -> tuple[Tensor, float]:
    """U, upper triangular float64 [C, C], with inverse(H + d mean(diag H) I) = U^T U, and the d that was used.

    Inputs that never fired (H_jj = 0) count with curvature 1. Damping grows tenfold, logged, until the matrix
    factorises (GPTQ, arXiv 2210.17323, step 3). Run it under one thread for equal bits on any machine load.
    """
    diagonal = hessian.diagonal().double()
    diagonal = torch.where(diagonal == 0, 1.0, diagonal)
    mean = float(diagonal.mean())
    if not math.isfinite(mean):
        raise WorkFailed("the Hessian is not finite: the calibration activations overflow.")
    used = damping
    while True:
        upper = _factor(hessian, diagonal + used * mean)
        if upper is not None:
            return upper, used
        if used >= 100:
            raise WorkFailed(
                "the Hessian does not factorise even with damping 100: the calibration data is degenerate."
            )
        used = max(used * 10, 1e-4)
        log.warning("Hessian is close to singular: damping raised to %g", used)


def inverse_factor(matrix: Tensor) -> Tensor:
    """U, upper triangular, with inverse(matrix) = U^T U, for a small positive definite matrix."""
    if matrix.numel() == 1:
        return matrix.rsqrt()
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(matrix)), upper=True)
    return upper


def _factor(hessian: Tensor, diagonal: Tensor) -> Tensor | None:
    """U for this diagonal, None if the matrix does not factorise; at most two float64 matrices live at a time."""
    h = hessian.to(torch.float64, copy=True)
    h.diagonal().copy_(diagonal)
    lower, info = torch.linalg.cholesky_ex(h)
    del h
    if int(info) != 0:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, info = torch.linalg.cholesky_ex(inverse, upper=True)
    del inverse
    return upper if int(info) == 0 and bool(upper.sum().isfinite()) else None  # `isfinite` would copy the matrix
