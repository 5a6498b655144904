"""One step of the recurrence as its formula says; float64 operands in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.inductor_kernels.state_space.codes import decay_rate, precision, result, values


def state_update_naive(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False, x_scale: Tensor | None = None,
    dt_scale: Tensor | None = None, A_scale: Tensor | None = None, B_scale: Tensor | None = None,
    C_scale: Tensor | None = None, D_scale: Tensor | None = None, z_scale: Tensor | None = None,
    out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """y of the shape of x, and the new state in ``state``; operands as in ``torchqx::state_update``."""
    dtype, axes = precision(x), x.dim() - 1
    if state.dim() == 3:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    x, dt, z = (values(t, scale, 1, dtype, axes) for t, scale in ((x, x_scale), (dt, dt_scale), (z, z_scale)))
    B, C = values(B, B_scale, 1, dtype), values(C, C_scale, 1, dtype)
    if state.dim() == 4:
        B, C = (t.repeat_interleave(state.shape[1] // t.shape[1], 1)[:, :, None] for t in (B, C))
    dt = dt if dt_bias is None else dt + dt_bias.to(dtype)
    dt = F.softplus(dt) if dt_softplus else dt
    decay = torch.exp(dt[..., None] * decay_rate(A, A_scale, dtype))
    new = decay * state + (dt * x)[..., None] * B
    state.copy_(new)
    y = (new * C).sum(-1)
    if D is not None:
        y = y + values(D, D_scale, 0, dtype) * x
    if z is not None:
        y = y * F.silu(z)
    return result(y, out_scale, 1, out_dtype, axes)
