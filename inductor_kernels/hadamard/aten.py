"""The Hadamard operators in plain torch: float64, and devices without a kernel."""

import torch
from torch import Tensor

from torchqx.hadamard_matrices import times_hadamard
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token, quantize_static


def hadamard_aten(x: Tensor, signs: Tensor | None, block: int, transpose: bool) -> Tensor:
    """x R, or x Rᵀ: [..., K] -> the same shape and dtype. Computes in float64 for float64, else in float32."""
    wide = x if x.dtype == torch.float64 else x.float()
    if signs is not None and not transpose:
        wide = wide * signs
    y = times_hadamard(wide, block, transpose)
    if signs is not None and transpose:
        y = y * signs
    return y.to(x.dtype)


def hadamard_quantize_static_aten(
    x: Tensor, signs: Tensor | None, block: int, mul: Tensor, add: Tensor, qmin: int, qmax: int
) -> Tensor:
    """clamp(round(x R · mul + add)): [..., K] -> codes [..., K]."""
    return quantize_static(hadamard_aten(x.float(), signs, block, False), mul, add, qmin, qmax)


def hadamard_quantize_per_token_aten(
    x: Tensor, signs: Tensor | None, block: int, smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int,
    symmetric: bool, clip_ratio: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """x R with one range per row: [..., K] -> codes [..., K], float32 and int32 [..., 1]."""
    y = hadamard_aten(x.float(), signs, block, False)
    return quantize_per_token(y, smooth, shift, qmin, qmax, symmetric, clip_ratio)
