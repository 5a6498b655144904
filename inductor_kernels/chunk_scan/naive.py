"""Mamba2's scan as its formula says; its gradient is that of the selective scan, with H · P channels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.inductor_kernels.selective_scan.naive import selective_scan_backward
from torchqx.inductor_kernels.state_space.codes import decay_rate, precision, result, values


def chunk_scan_naive(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    dt_bias: Tensor | None = None, initial_states: Tensor | None = None, dt_softplus: bool = False,
    dt_min: float | None = None, dt_max: float | None = None,
    x_scale: Tensor | None = None, dt_scale: Tensor | None = None, A_scale: Tensor | None = None,
    B_scale: Tensor | None = None, C_scale: Tensor | None = None, D_scale: Tensor | None = None,
    z_scale: Tensor | None = None, out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """y [B, L, H, P] and the last states [B, H, P, N]; operands as in ``torchqx::chunk_scan``."""
    dtype, heads = precision(x), x.shape[2]
    x, dt, z = values(x, x_scale, 2, dtype, 2), values(dt, dt_scale, 2, dtype), values(z, z_scale, 2, dtype, 2)
    B = values(B, B_scale, 2, dtype).repeat_interleave(heads // B.shape[2], 2)
    C = values(C, C_scale, 2, dtype).repeat_interleave(heads // C.shape[2], 2)
    dt = dt if dt_bias is None else dt + dt_bias.to(dtype)
    lowest, highest = -math.inf if dt_min is None else dt_min, math.inf if dt_max is None else dt_max
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(lowest, highest)
    decay = torch.exp(dt * decay_rate(A, A_scale, dtype))
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3])
    state = state if initial_states is None else state + initial_states
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for t in range(x.shape[1]):
        inputs = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = decay[:, t, :, None, None] * state + inputs
        y[:, t] = (state * C[:, t, :, None]).sum(-1)
    if D is not None:
        skip = values(D, D_scale, 0, dtype)
        y = y + (skip[:, None] if skip.dim() == 1 else skip) * x
    if z is not None:
        y = y * F.silu(z)
    return result(y, out_scale, 2, out_dtype, 2), state


def chunk_scan_backward(
    grad_y: Tensor, grad_last: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, dt_bias: Tensor | None, initial_states: Tensor | None, dt_softplus: bool,
    dt_min: float | None, dt_max: float | None,
) -> list[Tensor]:
    """Gradients of the given ones of x, dt, A, B, C, D, z, dt_bias and initial_states."""
    dtype, width, states = precision(x), x.shape[3], B.shape[3]
    raw = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
    step = F.softplus(raw) if dt_softplus else raw
    lowest, highest = -math.inf if dt_min is None else dt_min, math.inf if dt_max is None else dt_max
    inside = (step >= lowest) & (step <= highest)

    def channels(t: Tensor) -> Tensor:  # [B, L, H, P] -> [B, H P, L]
        return t.to(dtype).flatten(2).transpose(1, 2)

    skip = None if D is None else (D[:, None] if D.dim() == 1 else D).to(dtype).expand(-1, width).flatten()
    grads = selective_scan_backward(
        channels(grad_y), grad_last.flatten(1, 2), channels(x),
        step.clamp(lowest, highest).repeat_interleave(width, 2).transpose(1, 2),
        A.to(dtype).repeat_interleave(width)[:, None].expand(-1, states), B.to(dtype).permute(0, 2, 3, 1),
        C.to(dtype).permute(0, 2, 3, 1), skip, None if z is None else channels(z), None,
        None if initial_states is None else initial_states.to(dtype).flatten(1, 2), False)
    found = iter(grads)

    def sequence() -> Tensor:  # [B, H P, L] -> [B, L, H, P]
        return next(found).transpose(1, 2).unflatten(2, (-1, width))

    at_x, at_step = sequence(), sequence().sum(3)
    at_raw = at_step * inside * (torch.sigmoid(raw) if dt_softplus else 1)
    out = {"x": at_x, "dt": at_raw, "A": next(found).unflatten(0, (-1, width)).sum((1, 2)),
           "B": next(found).permute(0, 3, 1, 2), "C": next(found).permute(0, 3, 1, 2)}
    if D is not None:
        at_d = next(found).unflatten(0, (-1, width))
        out["D"] = at_d.sum(1) if D.dim() == 1 else at_d
    if z is not None:
        out["z"] = sequence()
    if dt_bias is not None:
        out["dt_bias"] = at_raw.sum((0, 1))
    if initial_states is not None:
        out["initial_states"] = next(found).unflatten(1, (-1, width))
    given = [t for t in (x, dt, A, B, C, D, z, dt_bias, initial_states) if t is not None]
    return [grad.to(t.dtype).clone(memory_format=torch.contiguous_format)
            for grad, t in zip(out.values(), given, strict=True)]
