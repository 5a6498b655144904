"""Norms without weight and bias, which a rotation passes through.

    rms(x R) = rms(x) R                         a rotation keeps lengths
    layer(x R) = layer(x) R                     where the mean is taken along u = 1ᵀR / sqrt(K):  x R - (x R · u) u
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bare_rms_norm(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimension, at least in float32: [..., K] -> the same in ``dtype``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(dtype)


def bare_layer_norm(x: Tensor, eps: float, dtype: torch.dtype, ones: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last dimension, at least in float32: [..., K] -> the same in ``dtype``.

    Args:
        ones: for x in rotated coordinates: 1ᵀR / sqrt(K), [K].
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if ones is None:
        return F.layer_norm(wide, x.shape[-1:], None, None, eps).to(dtype)
    direction = ones.to(wide.dtype)
    centred = wide - (wide * direction).sum(-1, keepdim=True) * direction
    return (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)).to(dtype)


def scaled_norm(bare: Tensor, weight: Tensor, bias: Tensor | None, offset: float) -> Tensor:
    """A bare norm [..., K] with its weight [K], an offset to it, and its bias [K]: the same in its dtype."""
    wide = bare.to(torch.promote_types(bare.dtype, torch.float32)) * (offset + weight)
    return (wide if bias is None else wide + bias).to(bare.dtype)


def rotated_ones(width: int, signs: Tensor | None, block: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1ᵀ R / sqrt(K), [K]."""
    ones = torch.full((width,), width**-0.5, dtype=dtype, device=device)
    return torch.ops.torchqx.hadamard(ones, signs, block, False)


def weighted(matrix: Tensor, weight: Tensor, offset: float) -> Tensor:
    """A matmul's weight [N, K] that has absorbed a norm's weight [K] and the offset to it: W diag(g), in its dtype."""
    return (matrix * (weight + offset)).to(matrix.dtype)


def moved_bias(matrix: Tensor, shift: Tensor, bias: Tensor | None) -> Tensor:
    """b + W z: the bias [N] of a matmul with weight [N, K] that has absorbed a norm's bias z [K], in W's dtype."""
    moved = torch.mv(matrix, shift.to(matrix.dtype))
    return moved if bias is None else moved + bias
