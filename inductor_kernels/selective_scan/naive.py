"""The selective scan as its formula says, and its gradient by the reverse recurrence; float64 operands in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.inductor_kernels.state_space.codes import decay_rate, precision, result, values


def spread_groups(t: Tensor, channels: int) -> Tensor:
    """B or C [B, N, L] or [B, G, N, L] -> [B, 1 or D, N, L]."""
    if t.dim() == 3:
        return t.unsqueeze(1)
    return t.repeat_interleave(channels // t.shape[1], 1)


def all_states(dt: Tensor, u: Tensor, A: Tensor, B: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """exp(dt A) and the states before every step and after the last: [L, B, D, N] and [L + 1, B, D, N]."""
    decay = torch.exp(torch.einsum("bdl,dn->lbdn", dt, A))
    inputs = (dt * u).permute(2, 0, 1)[..., None] * B.permute(3, 0, 1, 2)
    states = decay.new_zeros((decay.shape[0] + 1, u.shape[0], *A.shape))
    if initial is not None:
        states[0] = initial
    for t in range(decay.shape[0]):
        states[t + 1] = decay[t] * states[t] + inputs[t]
    return decay, states


def selective_scan_naive(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, initial_state: Tensor | None = None, delta_softplus: bool = False,
    u_scale: Tensor | None = None, delta_scale: Tensor | None = None, A_scale: Tensor | None = None,
    B_scale: Tensor | None = None, C_scale: Tensor | None = None, D_scale: Tensor | None = None,
    z_scale: Tensor | None = None, out_scale: Tensor | None = None, out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """y [B, D, L] and the last state [B, D, N]; operands as in ``torchqx::selective_scan``."""
    dtype, channels = precision(u), u.shape[1]
    u, delta, z = values(u, u_scale, 1, dtype), values(delta, delta_scale, 1, dtype), values(z, z_scale, 1, dtype)
    B = spread_groups(values(B, B_scale, 1, dtype), channels)
    C = spread_groups(values(C, C_scale, 1, dtype), channels)
    dt = delta if delta_bias is None else delta + delta_bias.to(dtype)[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    _, states = all_states(dt, u, decay_rate(A, A_scale, dtype), B, initial_state)
    y = (states[1:] * C.permute(3, 0, 1, 2)).sum(-1)  # [L, B, D]
    if D is not None:
        y = y + values(D, D_scale, 0, dtype) * u.permute(2, 0, 1)
    if z is not None:
        y = y * F.silu(z).permute(2, 0, 1)
    y = result(y.transpose(0, 1).contiguous(), out_scale, 2, out_dtype)
    return y.transpose(1, 2), states[-1].clone()


def selective_scan_backward(
    grad_y: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool,
) -> list[Tensor]:
    """Gradients of the given ones of u, delta, A, B, C, D, z, delta_bias and initial_state.

    With g_t the gradient of the state after step t: g_t = gy_t C_t + exp(dt_{t+1} A) g_{t+1}, from the last step down.
    """
    dtype, channels = precision(u), u.shape[1]
    uf, rate = u.to(dtype), A.to(dtype)
    Bf, Cf = spread_groups(B.to(dtype), channels), spread_groups(C.to(dtype), channels)
    raw = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)[:, None]
    dt = F.softplus(raw) if delta_softplus else raw
    decay, states = all_states(dt, uf, rate, Bf, initial_state)
    grads: dict[str, Tensor] = {}
    gy = grad_y.to(dtype)
    if z is not None:
        gate = torch.sigmoid(z.to(dtype))
        y = torch.einsum("lbdn,bdnl->bdl", states[1:], Cf.expand(-1, channels, -1, -1))
        y = y if D is None else y + D.to(dtype)[:, None] * uf
        grads["z"] = gy * y * gate * (1 + z.to(dtype) * (1 - gate))
        gy = gy * gate * z.to(dtype)
    g = grad_last.to(dtype)
    at_state = torch.empty_like(decay)
    outer = gy.permute(2, 0, 1)[..., None] * Cf.permute(3, 0, 1, 2)
    for t in range(decay.shape[0] - 1, -1, -1):
        at_state[t] = outer[t] + g
        g = decay[t] * at_state[t]
    at_exponent = at_state * decay * states[:-1]  # gradient of dt A
    at_input = torch.einsum("lbdn,bdnl->bdl", at_state, Bf.expand(-1, channels, -1, -1))  # gradient of dt u
    at_delta = at_input * uf + torch.einsum("lbdn,dn->bdl", at_exponent, rate)
    at_delta = at_delta * torch.sigmoid(raw) if delta_softplus else at_delta
    grads["u"] = at_input * dt if D is None else at_input * dt + gy * D.to(dtype)[:, None]
    grads["delta"] = at_delta
    grads["A"] = torch.einsum("lbdn,bdl->dn", at_exponent, dt)
    grads["B"] = _sum_groups(torch.einsum("lbdn,bdl->bdnl", at_state, dt * uf), B)
    grads["C"] = _sum_groups(torch.einsum("lbdn,bdl->bdnl", states[1:], gy), C)
    grads["D"] = (gy * uf).sum((0, 2))
    grads["delta_bias"], grads["initial_state"] = at_delta.sum((0, 2)), g
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias,
             "initial_state": initial_state}
    return [grads[name].to(t.dtype).clone(memory_format=torch.contiguous_format)
            for name, t in given.items() if t is not None]


def _sum_groups(grad: Tensor, t: Tensor) -> Tensor:
    """[B, D, N, L] summed over the channels of a group, in the shape of t."""
    groups = 1 if t.dim() == 3 else t.shape[1]
    return grad.unflatten(1, (groups, -1)).sum(2).reshape(t.shape)
