"""The int8 linear operators as their formula says, in float64: what the fast versions are tested against."""

import torch
from torch import Tensor

from torchqx.inductor_kernels.int8_linear.activations import activate


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """(q - z) · s in float64. Parameters: one element, [...], or [..., K/g] for groups of q [..., K]."""
    def spread(p: Tensor) -> Tensor:
        if p.numel() == 1:
            return p.double().reshape(())
        if p.dim() == q.dim() - 1:
            p = p.unsqueeze(-1)
        return p.double().repeat_interleave(q.shape[-1] // p.shape[-1], -1)

    centred = q.double() if zero_point is None else q.double() - spread(zero_point)
    return centred * spread(scale)


def int8_linear_naive(
    x: Tensor,
    qdata: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    x_scale: Tensor,
    x_zero_point: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    out_mul: Tensor | None = None,
    out_add: Tensor | None = None,
    out_qmin: int = 0,
    out_qmax: int = 255,
    gate: int | None = None,
) -> Tensor:
    """Result in float64 [..., N]; with ``out_mul`` the requantized value before rounding, clamped."""
    y = dequantize(x, x_scale, x_zero_point) @ dequantize(qdata, weight_scale, weight_zero_point).T
    if bias is not None:
        y = y + bias.double()
    y = activate(y, activation, gate)
    if residual is not None:
        y = y + residual.double()
    if out_mul is not None:
        y = (y * out_mul.double() + out_add.double()).clamp(out_qmin, out_qmax)
    return y


def int8_experts_naive(
    x: Tensor, qdata: Tensor, weight_scale: Tensor, x_scale: Tensor, x_zero_point: Tensor, bias: Tensor | None,
    offsets: Tensor,
) -> Tensor:
    """Row t of x [T, K] times the weight of its expert: [T, N] float64."""
    out = torch.zeros(x.shape[0], qdata.shape[1], dtype=torch.float64)
    rows = dequantize(x, x_scale, x_zero_point)
    for t in range(int(offsets[-1])):
        e = int((offsets <= t).sum())
        out[t] = rows[t] @ dequantize(qdata[e], weight_scale[e], None).T
        if bias is not None:
            out[t] += bias[e].double()
    return out
