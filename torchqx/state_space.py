"""State-space operations for people's own models: differentiable, compiled as one node each, fast on a CPU.

Arguments are named as in the packages that most models call (mamba_ssm, causal_conv1d). Operands are float32, bfloat16
or float16 (computed in float32) or float64, of any strides; results have the type of the operand u or x.
"""

import math

import torch
from torch import Tensor

from torchqx.errors import UnsupportedError
from torchqx.inductor_kernels import causal_conv1d as _conv
from torchqx.inductor_kernels import chunk_scan as _chunk_scan
from torchqx.inductor_kernels import selective_scan as _selective_scan
from torchqx.inductor_kernels import state_update as _state_update


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's scan over time: h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = (Σ_n h_t C_t + D u_t) · silu(z_t),
    with dt = delta + delta_bias, through softplus if ``delta_softplus``.

    Args:
        u, delta, z: [B, D, L].
        A: [D, N].
        B, C: [B, N, L], or [B, G, N, L] where group g serves D/G channels.
        D, delta_bias: [D].
        initial_state: [B, D, N]; zeros by default.

    Returns:
        y [B, D, L], and with ``return_last_state`` the state [B, D, N] in float32.

    Raises:
        ShapeError: operands that do not fit together.
        UnsupportedError: an operand that is not floating point.
    """
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    _selective_scan.check(*operands, out_dtype=u.dtype)
    y, last = torch.ops.torchqx.selective_scan.default(*operands, out_dtype=u.dtype)
    return (y, last) if return_last_state else y


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False,
) -> Tensor:
    """One step of Mamba's or Mamba2's recurrence, in place on ``state``: h <- exp(dt A) h + dt x Bᵀ,
    y = (h C + D x) · silu(z). It has no gradient.

    Args:
        state: contiguous float32 or bfloat16, [B, D, N], or [B, H, P, N] for Mamba2.
        x, dt, z: [B, D] or [B, H, P].
        A: [D, N] or [H, P, N]; expanded along N (stride 0) it costs one exponential per row.
        B, C: [B, N] or [B, G, N].
        D, dt_bias: [D] or [H, P].

    Returns:
        y, of the shape of x.

    Raises:
        ShapeError, UnsupportedError: operands that do not fit together.
    """
    operands = (state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    _state_update.check(*operands, out_dtype=x.dtype)
    return torch.ops.torchqx.state_update.default(*operands, out_dtype=x.dtype)


def chunk_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    dt_bias: Tensor | None = None, initial_states: Tensor | None = None, seq_idx: Tensor | None = None,
    dt_softplus: bool = False, dt_limit: tuple[float, float] = (0.0, math.inf), return_final_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba2's scan over time, with one decay per head: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ,
    y_t = (h_t C_t + D x_t) · silu(z_t), with dt clamped to ``dt_limit``.

    Args:
        x, z: [B, L, H, P].
        dt: [B, L, H].
        A, dt_bias: [H].
        B, C: [B, L, G, N], group g serving H/G heads.
        D: [H] or [H, P].
        initial_states: [B, H, P, N]; zeros by default.
        seq_idx: must be None.

    Returns:
        y [B, L, H, P], and with ``return_final_states`` the states [B, H, P, N] in float32.

    Raises:
        ShapeError, UnsupportedError: operands that do not fit together; packed sequences (``seq_idx``).
    """
    _refuse_packed(seq_idx, "chunk_scan")
    shortest, longest = (None if math.isinf(limit) else limit for limit in dt_limit)
    operands = (x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, shortest, longest)
    _chunk_scan.check(*operands, out_dtype=x.dtype)
    y, last = torch.ops.torchqx.chunk_scan.default(*operands, out_dtype=x.dtype)
    return (y, last) if return_final_states else y


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None,
    initial_states: Tensor | None = None, seq_idx: Tensor | None = None,
) -> Tensor:
    """Causal depthwise convolution y_t = act(Σ_k w_k x_{t - W + 1 + k} + bias).

    Args:
        x: [B, D, L].
        weight: [D, W].
        bias: [D].
        activation: None, or "silu" (also called "swish").
        initial_states: [B, D, S], the inputs before the first step, the oldest first; zeros by default.
        seq_idx: must be None.

    Returns:
        y [B, D, L].

    Raises:
        ConfigError: another activation.
        ShapeError, UnsupportedError: operands that do not fit together; packed sequences (``seq_idx``).
    """
    _refuse_packed(seq_idx, "causal_conv1d")
    name = _activation(activation)
    _conv.check(x, weight, bias, initial_states, name, out_dtype=x.dtype)
    return torch.ops.torchqx.causal_conv1d.default(x, weight, bias, initial_states, name, out_dtype=x.dtype)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """:func:`causal_conv1d` of the next steps, in place on ``conv_state`` [B, D, S], the last S inputs. No gradient.

    Args:
        x: [B, D], or [B, D, L] for several steps.

    Returns:
        y, of the shape of x.

    Raises:
        ConfigError, ShapeError, UnsupportedError: as for :func:`causal_conv1d`.
    """
    name, steps = _activation(activation), x.unsqueeze(-1) if x.dim() == 2 else x
    _conv.check(steps, weight, bias, conv_state, name, out_dtype=x.dtype)
    y = torch.ops.torchqx.causal_conv1d_update.default(steps, conv_state, weight, bias, name, out_dtype=x.dtype)
    return y.squeeze(-1) if x.dim() == 2 else y


def _activation(name: str | None) -> str:
    return {None: "none", "swish": "silu"}.get(name, name)


def _refuse_packed(seq_idx: Tensor | None, op: str) -> None:
    if seq_idx is not None:
        raise UnsupportedError("several sequences packed into one row (seq_idx)", where=op,
                               remedy="pad them to rows of their own.")
