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
