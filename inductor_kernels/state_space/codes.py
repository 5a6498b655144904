"""Codes and their scales in plain torch: the meaning that the kernels implement."""

import torch
from torch import Tensor

CODES = (torch.int8, torch.uint8)
LARGEST_CODE = 127
ZERO_POINT = 128  # of uint8 codes


def precision(t: Tensor) -> torch.dtype:
    """The type that the formulas compute in: float64 for float64 operands, else float32."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def values(t: Tensor | None, scale: Tensor | None, dim: int, dtype: torch.dtype, dims: int = 1) -> Tensor | None:
    """Code · scale, the scales belonging to equal parts of ``dims`` dimensions from ``dim`` on; floats are only
    converted."""
    if t is None or scale is None:
        return None if t is None else t.to(dtype)
    centred = t.to(dtype) - (ZERO_POINT if t.dtype == torch.uint8 else 0)
    return centred * _along(scale.to(dtype), centred, dim, dims)


def decay_rate(a: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A itself, or -exp(A_log) from the codes of A_log."""
    return a.to(dtype) if scale is None else -values(a, scale, 0, dtype).exp()


def result(y: Tensor, scale: Tensor | None, dim: int, dtype: torch.dtype, dims: int = 1) -> Tensor:
    """y in ``dtype``, or with ``scale`` the codes clamp(round(y / scale), -127, 127)."""
    if scale is None:
        return y.to(dtype)
    codes = torch.round(y / _along(scale.to(y.dtype), y, dim, dims)).clamp(-LARGEST_CODE, LARGEST_CODE)
    return (codes + (ZERO_POINT if dtype == torch.uint8 else 0)).to(dtype)


def _along(scale: Tensor, t: Tensor, dim: int, dims: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    channels = t.shape[dim : dim + dims]
    spread = scale.flatten().repeat_interleave(channels.numel() // scale.numel())
    return spread.reshape(*channels, *[1] * (t.dim() - dim - dims))
