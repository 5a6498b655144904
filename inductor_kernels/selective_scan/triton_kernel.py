"""The selective scan of a block of channels, from the first step to the last, with the states in registers.

Tiles are [time, channels] and [states, channels] with a thread per channel: a warp reads neighbouring channels at once,
the sum over states stays within a thread, and so does picking a step out of the tile of STEPS that is read ahead.
"""

import triton
import triton.language as tl

from torchqx.inductor_kernels.state_space.triton_operand import read, scale_of, silu, softplus, write


@triton.jit
def scan_channels(
    u, u_scale, u_per, u_b, u_d, u_l, delta, delta_scale, delta_per, delta_b, delta_d, delta_l, A, A_scale, A_d, A_n,
    B, B_scale, B_per, B_b, B_g, B_l, B_n, C, C_scale, C_per, C_b, C_g, C_l, C_n, D, D_scale, D_d,
    z, z_scale, z_per, z_b, z_d, z_l, delta_bias, delta_bias_d, initial_state, initial_state_b, initial_state_d,
    initial_state_n, y, last, out_scale, out_per, steps, channels, group_channels, states,
    SOFTPLUS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr,
):
    """``y`` [B, L, D] and ``last`` [B, D, N] are contiguous; a program has CHANNELS of the channels of one group."""
    group, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * CHANNELS
    c = tl.arange(0, CHANNELS)  # offsets within a tile have 32 bits, those of its corner 64
    inside, corner = first + c < group_channels, group.to(tl.int64) * group_channels + first
    d = tl.minimum(corner + c, channels - 1)
    i, n = tl.arange(0, STEPS), tl.arange(0, STATES)
    known = n < states
    u_scales, delta_scales = scale_of(u_scale, d, u_per), scale_of(delta_scale, d, delta_per)
    z_scales, out_scales = scale_of(z_scale, d, z_per), scale_of(out_scale, d, out_per)
    B_scales, C_scales = scale_of(B_scale, group, B_per), scale_of(C_scale, group, C_per)

    rate = read(A, d[None, :] * A_d + n[:, None] * A_n, known[:, None], scale_of(A_scale, 0, 1))
    if A_scale is not None:
        rate = -tl.exp(rate)
    rate *= 1.4426950408889634  # for exp2
    h = tl.zeros((STATES, CHANNELS), tl.float32)
    if initial_state is not None:
        h = read(initial_state, batch * initial_state_b + d[None, :] * initial_state_d + n[:, None] * initial_state_n,
                 known[:, None], 1.0)
    skip, bias = 0.0, 0.0
    if D is not None:
        skip = read(D, d * D_d, True, scale_of(D_scale, 0, 1))
    if delta_bias is not None:
        bias = tl.load(delta_bias + d * delta_bias_d).to(tl.float32)

    begin = tl.full((), 0, tl.int64)
    for start in range(0, steps, STEPS):
        left = steps - start
        now = (i < left)[:, None] & inside[None, :]
        inputs = read(u + batch * u_b + begin * u_l + corner * u_d, i[:, None] * u_l + c[None, :] * u_d, now, u_scales)
        step = read(delta + batch * delta_b + begin * delta_l + corner * delta_d,
                    i[:, None] * delta_l + c[None, :] * delta_d, now, delta_scales) + bias
        if SOFTPLUS:
            step = softplus(step)
        step = tl.where(now, step, 0.0)  # after the end nothing changes
        change = step * inputs
        value = skip * inputs
        at_B, at_C = B + batch * B_b + group * B_g + begin * B_l, C + batch * C_b + group * C_g + begin * C_l
        for k in tl.static_range(STEPS):
            chosen = (i == k)[:, None]
            step_k = tl.sum(tl.where(chosen, step, 0.0), 0)[None, :]
            change_k = tl.sum(tl.where(chosen, change, 0.0), 0)[None, :]
            there = n < tl.where(k < left, states, 0)  # Triton 3.9's interpreter broadcasts no single truth value
            into = read(at_B, k * B_l + n * B_n, there, B_scales)
            out_of = read(at_C, k * C_l + n * C_n, there, C_scales)
            h = tl.exp2(step_k * rate) * h + change_k * into[:, None]
            value += tl.where(chosen, tl.sum(h * out_of[:, None], 0)[None, :], 0.0)
        if z is not None:
            value *= silu(read(z + batch * z_b + begin * z_l + corner * z_d, i[:, None] * z_l + c[None, :] * z_d, now,
                               z_scales))
        write(y + (batch * steps + begin) * channels + corner, i[:, None] * channels + c[None, :],
              now, value, out_scales)
        begin += STEPS

    tl.store(last + (batch * channels + d[None, :]) * states + n[:, None], h, mask=inside[None, :] & known[:, None])
