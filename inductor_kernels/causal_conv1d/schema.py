"""``torchqx::causal_conv1d`` and ``torchqx::causal_conv1d_update``: their schemas, and their shapes for tracing.

    y_t = act(Σ_k w_k x_{t - W + 1 + k} + bias)

x [B, D, L] of any strides, weight [D, W], bias [D]. Inputs before the first step come from a state [B, D, S] of x's
type, the oldest first; where it is missing or too short they are zero. The update shifts the inputs into its contiguous
state, in place. y [B, D, L] has neighbouring channels next to each other in memory. x (with the state) and weight may
be codes, the scales belonging to channels.
"""

import torch
from torch import Tensor

from torchqx.errors import ConfigError, ShapeError
from torchqx.inductor_kernels.state_space.checks import check_operand, check_output

ACTIVATIONS = ("none", "silu")
LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
_REST = ('str activation="none", Tensor? x_scale=None, Tensor? weight_scale=None, Tensor? out_scale=None, '
         "ScalarType out_dtype=float) -> Tensor")
for _suffix in ("", "_naive"):
    LIBRARY.define(f"causal_conv1d{_suffix}(Tensor x, Tensor weight, Tensor? bias=None, Tensor? initial_states=None, "
                   + _REST)
    LIBRARY.define(f"causal_conv1d_update{_suffix}(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias=None, "
                   + _REST)


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None, activation: str = "none",
    x_scale: Tensor | None = None, weight_scale: Tensor | None = None, out_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> None:
    """Refuse operands that do not fit together.

    Raises:
        ConfigError: an unknown activation.
        ShapeError: a shape, or a number of scales; a state of another type than x.
        UnsupportedError: a type.
    """
    op = "causal_conv1d"
    if activation not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {activation!r}", where=op, remedy=f"use {' or '.join(ACTIVATIONS)}.")
    if x.dim() != 3 or weight.dim() != 2 or (state is not None and (state.dim() != 3 or state.dtype != x.dtype)):
        found = None if state is None else (tuple(state.shape), state.dtype)
        raise ShapeError(f"x {tuple(x.shape)} of {x.dtype}, weight {tuple(weight.shape)}, state {found}", where=op,
                         remedy="give x [B, D, L], weight [D, W] and a state [B, D, S] of x's type.")
    batch, channels, steps = x.shape
    check_operand(op, "x", x, (batch, channels, steps), x_scale, channels)
    check_operand(op, "weight", weight, (channels, weight.shape[1]), weight_scale, channels)
    check_operand(op, "bias", bias, (channels,))
    if state is not None:
        check_operand(op, "the state", state, (batch, channels, state.shape[2]), x_scale, channels)
    check_output(op, out_scale, out_dtype, channels)


def _result(x: Tensor, dtype: torch.dtype) -> Tensor:
    _, channels, steps = x.shape
    return torch.empty_strided(x.shape, (channels * steps, 1, channels), dtype=dtype, device=x.device)


@torch.library.register_fake("torchqx::causal_conv1d_naive")
@torch.library.register_fake("torchqx::causal_conv1d")
def causal_conv1d_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_states: Tensor | None = None,
    activation: str = "none", x_scale: Tensor | None = None, weight_scale: Tensor | None = None,
    out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Shape, strides and type of y."""
    check(x, weight, bias, initial_states, activation, x_scale, weight_scale, out_scale, out_dtype)
    return _result(x, out_dtype)


@torch.library.register_fake("torchqx::causal_conv1d_update_naive")
@torch.library.register_fake("torchqx::causal_conv1d_update")
def causal_conv1d_update_fake(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none",
    x_scale: Tensor | None = None, weight_scale: Tensor | None = None, out_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Shape, strides and type of y."""
    check(x, weight, bias, state, activation, x_scale, weight_scale, out_scale, out_dtype)
    if not state.is_contiguous():
        raise ShapeError("the state is not contiguous", where="causal_conv1d_update", remedy="keep it contiguous.")
    return _result(x, out_dtype)
