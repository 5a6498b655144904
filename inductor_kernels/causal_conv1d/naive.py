"""The causal convolution as its formula says; float64 operands in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.inductor_kernels.state_space.codes import precision, result, values


def with_history(x: Tensor, state: Tensor | None, taps: int) -> Tensor:
    """The W - 1 inputs before the first step, then x: [B, D, W - 1 + L]."""
    before = x.new_zeros(*x.shape[:2], taps - 1)
    if state is not None and taps > 1 and state.shape[2] > 0:
        known = min(taps - 1, state.shape[2])
        before[..., taps - 1 - known :] = state[..., state.shape[2] - known :]
    return torch.cat([before, x], -1)


def causal_conv1d_naive(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_states: Tensor | None = None,
    activation: str = "none", x_scale: Tensor | None = None, weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """y [B, D, L]; operands as in ``torchqx::causal_conv1d``."""
    dtype, steps = precision(x), x.shape[2]
    w = values(weight, weight_scale, 0, dtype)
    inputs = with_history(values(x, x_scale, 1, dtype), values(initial_states, x_scale, 1, dtype), w.shape[1])
    y = sum(w[:, k, None] * inputs[..., k : k + steps] for k in range(w.shape[1]))
    y = y if bias is None else y + bias.to(dtype)[:, None]
    y = F.silu(y) if activation == "silu" else y
    return result(y.transpose(1, 2).contiguous(), out_scale, 2, out_dtype).transpose(1, 2)


def causal_conv1d_update_naive(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none",
    x_scale: Tensor | None = None, weight_scale: Tensor | None = None, out_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """:func:`causal_conv1d_naive`, and the inputs shifted into ``state``."""
    y = causal_conv1d_naive(x, weight, bias, state, activation, x_scale, weight_scale, out_scale, out_dtype)
    state.copy_(torch.cat([state, x], -1)[..., x.shape[2] :])
    return y
