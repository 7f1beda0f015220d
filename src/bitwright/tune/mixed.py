"""A linear layer with scales that every token mixes, as it is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.mixing import Mixer


class MixedLinear(nn.Module):
    """y = (x * before) W^T * behind + b with the factors of a `Mixer` of `others` experts behind the first."""

    def __init__(self, linear: nn.Linear, others: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        rows, columns = linear.weight.shape
        self.router = nn.Parameter(torch.empty(others, columns))
        self.inputs = nn.Parameter(torch.empty(others, columns))
        self.outputs = nn.Parameter(torch.empty(others, rows))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., R]."""
        before, behind = Mixer(self.router, self.inputs, self.outputs).factors(x)
        y = F.linear(x * before, self.weight) * behind
        return y if self.bias is None else y + self.bias
