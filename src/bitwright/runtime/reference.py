"""The arithmetic of packed layers in torch: what every kernel must give, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.groups import groups
from bitwright.protocols import Operand
from bitwright.rotation import rotated_inputs

LARGEST_CODE = 127
EXACT = 2**24 // (255 * LARGEST_CODE)  # columns whose products float32 adds up exactly


def quantize_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Float32 [T, C] -> integers -127..127 as float32 [T, C], and scales float32 [T, groups].

    scale = max|x| / 127 a token and group; code = x * (1 / scale), rounded half to even; an all-zero group has scale 0.
    """
    codes = torch.empty_like(x)
    runs = groups(x.shape[1], group)
    scales = x.new_empty(x.shape[0], len(runs))
    for g, columns in enumerate(runs):
        part = x[:, columns]
        scale = part.abs().amax(1, keepdim=True) / LARGEST_CODE
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        codes[:, columns] = torch.round(part * inverse).clamp(-LARGEST_CODE, LARGEST_CODE)
        scales[:, g] = scale[:, 0]
    return codes, scales


def integer_matmul(x: Tensor, operands: tuple[Operand, ...], activation_group: int) -> Tensor:
    """Float32 [T, C] times packed [R, C] -> float32 [T, R] with int8 activations.

    For each operand, for each activation group: t = s * A + m * Q, f = f + d * t, with A = sum code * q and Q = sum q
    exact integers, every product rounded on its own (no fused multiply-add). Operands with `inputs` have codes q and
    scales d of their own, those of x * inputs. Rotated operands see x rotated.
    """
    if operands[0].rotated:
        x = rotated_inputs(x)
    distinct = {id(o.inputs): o.inputs for o in operands}
    quantized = {
        key: quantize_activations(x if inputs is None else x * inputs.float(), activation_group)
        for key, inputs in distinct.items()
    }
    out = x.new_zeros(x.shape[0], operands[0].codes.shape[0])
    for operand in operands:
        q, d = quantized[id(operand.inputs)]
        for g, run in enumerate(groups(x.shape[1], activation_group)):
            part = q[:, run]
            exact = torch.float32 if part.shape[1] <= EXACT else torch.float64
            a = (part.to(exact) @ operand.codes[:, run].to(exact).t()).float()
            if operand.mask is None:
                total = part.sum(1, keepdim=True)
            else:
                total = part @ operand.mask[:, run].float().t()
            at = 0 if operand.group is None else run.start // operand.group
            term = operand.scale[:, at] * a + operand.min[:, at] * total
            out = out + d[:, g : g + 1] * term
    return out
