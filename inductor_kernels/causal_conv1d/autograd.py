"""The gradient of ``torchqx::causal_conv1d`` for float operands, in plain torch; codes have none."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.errors import TrainingError
from torchqx.inductor_kernels.causal_conv1d import cpu as _cpu  # noqa: F401  registers the operators
from torchqx.inductor_kernels.causal_conv1d.naive import with_history
from torchqx.inductor_kernels.state_space.codes import precision


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, initial_states, activation, *scales, _ = inputs
    if any(scale is not None for scale in scales):
        raise TrainingError("codes have no gradient", where="causal_conv1d",
                            remedy="call it under torch.no_grad(), or train the float form.")
    ctx.save_for_backward(x, weight, bias, initial_states)
    ctx.silu = activation == "silu"


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """y = act(p): the gradient of p, then that of each operand of the sum."""
    x, weight, bias, state = ctx.saved_tensors
    dtype, steps, taps = precision(x), x.shape[2], weight.shape[1]
    w = weight.to(dtype)
    inputs = with_history(x.to(dtype), None if state is None else state.to(dtype), taps)
    grad = grad.to(dtype)
    if ctx.silu:
        p = sum(w[:, k, None] * inputs[..., k : k + steps] for k in range(taps))
        p = p if bias is None else p + bias.to(dtype)[:, None]
        gate = torch.sigmoid(p)
        grad = grad * gate * (1 + p * (1 - gate))
    at_inputs = sum(F.pad(w[:, k, None] * grad, (k, taps - 1 - k)) for k in range(taps))
    at_weight = torch.stack([(grad * inputs[..., k : k + steps]).sum((0, 2)) for k in range(taps)], -1)
    at_state = None
    if state is not None:
        known = min(taps - 1, state.shape[2])
        at_state = F.pad(at_inputs[..., taps - 1 - known : taps - 1], (state.shape[2] - known, 0)).to(state.dtype)
    at_bias = None if bias is None else grad.sum((0, 2)).to(bias.dtype)
    return at_inputs[..., taps - 1 :].to(x.dtype), at_weight.to(weight.dtype), at_bias, at_state, *[None] * 5


torch.library.register_autograd("torchqx::causal_conv1d", backward, setup_context=setup_context)
