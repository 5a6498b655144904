"""Operands that a kernel can take, told before it runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.state_space.codes import CODES

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_operand(op: str, name: str, t: Tensor | None, shape: Sequence[int], scale: Tensor | None = None,
                  channels: int = 1) -> None:
    """Refuse an operand of another shape or type, or scales that do not fit.

    Raises:
        ShapeError: ``t`` is not of ``shape``, or its scales do not divide ``channels``.
        UnsupportedError: a type that no kernel reads; codes without a scale; floats with one.
    """
    if t is None:
        if scale is not None:
            raise UnsupportedError(f"{name} has a scale but is not given", where=op, remedy="leave the scale out.")
        return
    if t.dim() != len(shape) or any(have != want for have, want in zip(t.shape, shape, strict=True)):
        raise ShapeError(f"{name} has the shape {tuple(t.shape)}, not {tuple(shape)}", where=op,
                         remedy="transpose or expand it (views are read without a copy).")
    if t.dtype not in (CODES if scale is not None else FLOATS):
        raise UnsupportedError(f"{name} is {t.dtype} {'with' if scale is not None else 'without'} a scale", where=op,
                               remedy="give floats, or int8 or uint8 codes together with their scale.")
    if scale is not None:
        check_scale(op, name, scale, channels)


def check_output(op: str, out_scale: Tensor | None, out_dtype: torch.dtype, channels: int) -> None:
    """Refuse an output type that does not go with ``out_scale``.

    Raises:
        ShapeError, UnsupportedError: as for operands.
    """
    if out_dtype not in (CODES if out_scale is not None else FLOATS):
        raise UnsupportedError(f"an output of {out_dtype} {'with' if out_scale is not None else 'without'} out_scale",
                               where=op, remedy="ask for floats, or for int8 or uint8 together with out_scale.")
    if out_scale is not None:
        check_scale(op, "the output", out_scale, channels)


def check_scale(op: str, name: str, scale: Tensor, channels: int) -> None:
    """Refuse scales that are not contiguous float32, or not one per equal part of ``channels``."""
    if scale.dtype != torch.float32 or scale.numel() == 0 or channels % scale.numel() != 0:
        raise ShapeError(f"{name} has {scale.numel()} scales of {scale.dtype} for {channels} channels", where=op,
                         remedy="give contiguous float32 scales, one or a number that divides the channels.")
