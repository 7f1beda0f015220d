from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitwright.protocols import Term

Floats = NDArray[np.float32]

def cpu_info() -> dict[str, Any]:
    """Levels in use, usable and refused with the reason, and cores this process may use."""

def isa() -> str:
    """The instruction-set level in use."""

def set_isa(name: str) -> None:
    """Use this level from now on; ValueError if it cannot run here."""

def quantize(x: Tensor | Floats, group: int) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]:
    """Float32 [T, C] -> codes [T, C], scales [T, G], sums of codes [T, G], as kernels compute them."""

class Matrix:
    """Packed [rows, cols], the sum of terms, viewed where memory is 64-byte aligned, copied where not."""

    def __init__(self, terms: Sequence[Term], rows: int, cols: int, bias: Tensor | Floats | None = None) -> None: ...
    def matmul(self, x: Tensor | Floats, threads: int = 0) -> Floats:
        """Float32 [T, cols], contiguous -> [T, rows]; 0 threads: all cores this process may use."""

    def reference(self, x: Tensor | Floats) -> Floats:
        """The same by the plain loops that kernels are checked against."""

    def kernel_seconds(self, x: Tensor | Floats, repeats: int) -> float:
        """Median seconds of the kernels alone on the calling thread, x quantized beforehand."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def nbytes(self) -> int:
        """Bytes read for one token."""
