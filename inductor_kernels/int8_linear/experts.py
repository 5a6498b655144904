"""Stacked experts: one int8 matmul per expert over its rows. How many those are is known only at run time."""

import torch
from torch import Tensor

from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten, int8_linear_general_aten


@torch.library.custom_op("torchqx::int8_experts", mutates_args=())
def int8_experts_aten(
    x: Tensor,
    qdata: Tensor,
    weight_scale: Tensor,
    column_sum: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    weight_zero_point: Tensor | None = None,
) -> Tensor:
    """Rows sorted by expert: rows offsets[e-1] to offsets[e] of x go through the weight of expert e.

    x uint8 [T, K]; qdata int8 [E, N, K]; weight_scale float32 and column_sum int32 [E, N]; x_scale float32 and
    x_zero_point int32, one element or one per row; bias [E, N]; offsets int32 [E]. Returns float32 [T, N]; rows
    after the last offset are zero. Asymmetric weights bring weight_zero_point, as weight_scale; with groups those two
    are [E, N, K/g], and x_scale and x_zero_point may be [T, K/g].
    """
    grouped = weight_scale.dim() > 2 or (x_scale.dim() > 1 and x_scale.shape[-1] > 1)
    out = torch.zeros((x.shape[0], qdata.shape[1]), dtype=torch.float32, device=x.device)
    start = 0
    for e, end in enumerate(offsets.tolist()):
        if end > start:
            scale, zero_point = (p if p.numel() == 1 else p[start:end] for p in (x_scale, x_zero_point))
            own = None if bias is None else bias[e]
            tail = (scale, zero_point, own, "none", None, None, None, 0, 255, torch.float32)
            if grouped or weight_zero_point is not None:
                zeros = None if weight_zero_point is None else weight_zero_point[e]
                out[start:end] = int8_linear_general_aten(x[start:end], qdata[e], weight_scale[e], zeros, *tail)
            else:
                out[start:end] = int8_linear_aten(x[start:end], qdata[e], weight_scale[e], column_sum[e], *tail)
        start = max(start, end)
    return out


@int8_experts_aten.register_fake
def _(x: Tensor, qdata: Tensor, weight_scale: Tensor, column_sum: Tensor, x_scale: Tensor, x_zero_point: Tensor,
      bias: Tensor | None, offsets: Tensor, weight_zero_point: Tensor | None = None) -> Tensor:
    return x.new_empty((x.shape[0], qdata.shape[1]), dtype=torch.float32)
