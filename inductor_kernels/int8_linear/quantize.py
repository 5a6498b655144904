"""Quantizing activations in plain torch: Inductor fuses it into the kernel that produces them.

Codes are uint8, as CPUs multiply them, or int8 where ``qmin`` is negative, as GPUs do.

All arithmetic is in float32, whatever the dtype of ``x``. A value's code is ``clamp(round(x / scale) + zero_point)``.
"""

import torch
from torch import Tensor

from torchqx.inductor_kernels.stored import STORED
from torchqx.quantizers import SMALLEST_SCALE


def code_dtype(qmin: int) -> torch.dtype:
    """How codes from ``qmin`` on are held."""
    return torch.int8 if qmin < 0 else torch.uint8


def per_token_results(x: Tensor, qmin: int) -> tuple[Tensor, Tensor, Tensor]:
    """Empty codes, scales and zero points for the rows of x, as :func:`quantize_per_token` gives."""
    row = (*x.shape[:-1], 1)
    return (x.new_empty(x.shape, dtype=code_dtype(qmin)), x.new_empty(row, dtype=torch.float32),
            x.new_empty(row, dtype=torch.int32))


def quantize_static(x: Tensor, mul: Tensor, add: Tensor, qmin: int, qmax: int) -> Tensor:
    """clamp(round(x · mul + add)): [..., K] -> uint8 [..., K].

    ``mul`` and ``add`` (float32, [K] or one element) hold scale, zero point, shift and smoothing in one:
    mul = 1 / (smooth · scale), add = zero_point - shift · mul.
    """
    return torch.round(x.float() * mul + add).clamp(qmin, qmax).to(code_dtype(qmin))


def quantize_per_token(
    x: Tensor, inv_smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int, symmetric: bool,
    clip_ratio: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - shift) · inv_smooth with one range per row: [..., K] -> uint8 [..., K], float32 and int32 [..., 1].

    ``clip_ratio`` is the share of each range that the codes cover.
    """
    return _quantize_rows(transformed(x, inv_smooth, shift), qmin, qmax, symmetric, clip_ratio)


def quantize_per_group(
    x: Tensor, inv_smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int, symmetric: bool, group_size: int,
    clip_ratio: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One range per ``group_size`` elements of a row: [..., K] -> uint8 [..., K], float32 and int32 [..., K/g]."""
    groups = transformed(x, inv_smooth, shift).unflatten(-1, (-1, group_size))
    q, scale, zero_point = _quantize_rows(groups, qmin, qmax, symmetric, clip_ratio)
    return q.flatten(-2), scale.squeeze(-1), zero_point.squeeze(-1)


def transformed(x: Tensor, inv_smooth: Tensor | None, shift: Tensor | None) -> Tensor:
    """(x - shift) · inv_smooth in float32."""
    y = x.float()
    if shift is not None:
        y = y - shift
    return y if inv_smooth is None else y * inv_smooth


def _quantize_rows(
    y: Tensor, qmin: int, qmax: int, symmetric: bool, clip_ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    high = y.amax(-1, keepdim=True).clamp(min=0) * clip_ratio
    low = y.amin(-1, keepdim=True).clamp(max=0) * clip_ratio
    if symmetric:
        scale = (torch.maximum(high, -low) * (2 / (qmax - qmin))).clamp(min=SMALLEST_SCALE)
        zero_point = torch.full_like(scale, (qmin + qmax) // 2)
    else:
        scale = ((high - low) * (1 / (qmax - qmin))).clamp(min=SMALLEST_SCALE)
        zero_point = _of_row(torch.round(qmin - low / scale).clamp(qmin, qmax))
    q = (torch.round(y * _of_row(1 / scale)) + zero_point).clamp(qmin, qmax)
    return q.to(code_dtype(qmin)), scale, zero_point.to(torch.int32)


def _of_row(value: Tensor) -> Tensor:
    """One value per row, computed once per row in compiled code too. (On GPUs it stays in a register as it is.)"""
    return value if value.is_cuda else STORED(value)
