"""``torchqx::quantize_rows``: its schema, and its shapes for tracing. The C++ kernel registers itself once built."""

import torch
from torch import Tensor

from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.int8_linear.quantize import per_token_results

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define(
    "quantize_rows(Tensor x, Tensor? inv_smooth, Tensor? shift, int qmin, int qmax, bool symmetric, "
    "float clip_ratio=1.0) -> (Tensor, Tensor, Tensor)"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.register_fake("torchqx::quantize_rows")
def quantize_rows_fake(
    x: Tensor, inv_smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int, symmetric: bool,
    clip_ratio: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., K] -> codes [..., K], float32 scales and int32 zero points [..., 1].

    Raises:
        ShapeError: ``inv_smooth`` or ``shift`` has neither K elements nor one.
        UnsupportedError: a dtype other than float32, bfloat16 and float16.
    """
    if x.dtype not in DTYPES:
        raise UnsupportedError(f"rows of {x.dtype}", where="quantize_rows", remedy="convert them to float32.")
    for name, factor in (("inv_smooth", inv_smooth), ("shift", shift)):
        if factor is not None and factor.numel() not in (1, x.shape[-1]):
            raise ShapeError(f"{name} of shape {tuple(factor.shape)} for rows of {x.shape[-1]}", where="quantize_rows",
                             remedy="give one element per element of a row.")
    return per_token_results(x, qmin)
