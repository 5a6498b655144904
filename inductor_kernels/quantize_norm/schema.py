"""``torchqx::quantize_norm``: its schema, and its shapes for tracing. The C++ kernel registers itself once built."""

import torch
from torch import Tensor

from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.int8_linear.quantize import code_dtype

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define(
    "quantize_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor mul, Tensor add, int qmin, int qmax, "
    "bool keep) -> (Tensor, Tensor)"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.register_fake("torchqx::quantize_norm")
def quantize_norm_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mul: Tensor, add: Tensor, qmin: int,
    qmax: int, keep: bool,
) -> tuple[Tensor, Tensor]:
    """x [..., K] -> the norm in x's dtype [..., K] (where ``keep``, else [0]), and its codes [..., K].

    The norm is y = (x - mean) / sqrt(var + eps) · weight + bias; its codes are clamp(round(y · mul + add)). ``weight``
    and ``bias`` have one of :data:`DTYPES`, ``mul`` and ``add`` are float32.

    Raises:
        ShapeError: ``weight`` or ``bias`` has not K elements, or ``mul`` or ``add`` neither K nor one.
        UnsupportedError: x has a dtype other than float32, bfloat16 and float16.
    """
    if x.dtype not in DTYPES:
        raise UnsupportedError(f"rows of {x.dtype}", where="quantize_norm", remedy="convert them to float32.")
    k = x.shape[-1]
    for name, operand in (("weight", weight), ("bias", bias), ("mul", mul), ("add", add)):
        sizes = (1, k) if name in ("mul", "add") else (k,)
        if operand is not None and operand.numel() not in sizes:
            raise ShapeError(f"{name} of shape {tuple(operand.shape)} for rows of {k}", where="quantize_norm",
                             remedy="give one element per element of a row.")
    kept = torch.empty_like(x, memory_format=torch.contiguous_format) if keep else x.new_empty(0)
    return kept, x.new_empty(x.shape, dtype=code_dtype(qmin))
