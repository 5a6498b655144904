"""Integer weights under float activations, in plain ATen for every device: the float matmul of what codes stand for.

It saves memory, not time: weights become float again for every call.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def weight_only_linear(x: Tensor, qdata: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None,
                       bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """x Wᵀ + bias with W = (q - z) · s: float rows [..., K] -> [..., N] in ``out_dtype``.

    qdata int8 [N, K]; weight_scale float32 and weight_zero_point int32, [N] or [N, K/g]; bias float32 [N].
    """
    if weight_zero_point is None and weight_scale.dim() == 1 and x.dtype != torch.float16:
        # Codes are exact in x's dtype, rounded weights would not be; sums of codes may overflow float16.
        y = F.linear(x, qdata.to(x.dtype)).float() * weight_scale
    else:
        groups = qdata.unflatten(-1, (weight_scale.numel() // len(qdata), -1)).float()
        if weight_zero_point is not None:
            groups = groups - weight_zero_point.reshape(len(qdata), -1, 1)
        weight = (groups * weight_scale.reshape(len(qdata), -1, 1)).flatten(1)
        y = F.linear(x, weight.to(x.dtype)).float()
    return (y if bias is None else y + bias).to(out_dtype)


@torch.library.custom_op("torchqx::weight_only_experts", mutates_args=())
def weight_only_experts(x: Tensor, qdata: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None,
                        bias: Tensor | None, offsets: Tensor, out_dtype: torch.dtype) -> Tensor:
    """:func:`weight_only_linear` of rows sorted by expert: rows offsets[e-1] to offsets[e] of x [T, K] meet the weight
    of expert e. All else has a leading dimension of experts. Rows after the last offset are zero in the result [T, N].
    """
    out = x.new_zeros((x.shape[0], qdata.shape[1]), dtype=out_dtype)
    start = 0
    for e, end in enumerate(offsets.tolist()):
        own = [None if t is None else t[e] for t in (qdata, weight_scale, weight_zero_point, bias)]
        out[start:end] = weight_only_linear(x[start:end], *own, out_dtype)
        start = max(start, end)
    return out


@weight_only_experts.register_fake
def _(x: Tensor, qdata: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, bias: Tensor | None,
      offsets: Tensor, out_dtype: torch.dtype) -> Tensor:
    return x.new_empty((x.shape[0], qdata.shape[1]), dtype=out_dtype)
