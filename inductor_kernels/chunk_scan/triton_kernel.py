"""Mamba2's scan of one head in chunks of time: matrix products inside a chunk, a state [P, N] from chunk to chunk.

With s_i = Σ_{k <= i} dt_k A within a chunk, and h the state before it:

    y_i = Σ_{j <= i} exp(s_i - s_j) (C_i · B_j) dt_j x_j + exp(s_i) h C_i
    h <- exp(s_T) h + Σ_j exp(s_T - s_j) dt_j x_j B_jᵀ

The sums s are float64, and their differences those of two float32 parts: one large step would cost its neighbours
their digits.
"""

import triton
import triton.language as tl

from torchqx.inductor_kernels.state_space.triton_operand import read, scale_of, silu, softplus, write


@triton.jit
def scan_head(
    x, x_scale, x_per, x_b, x_l, x_h, x_p, dt, dt_scale, dt_per, dt_b, dt_l, dt_h, A, A_scale, A_h,
    B, B_scale, B_per, B_b, B_l, B_g, B_n, C, C_scale, C_per, C_b, C_l, C_g, C_n, D, D_scale, D_h, D_p,
    z, z_scale, z_per, z_b, z_l, z_h, z_p, dt_bias, dt_bias_h, initial_states, initial_states_b, initial_states_h,
    initial_states_p, initial_states_n, y, last, out_scale, out_per, steps, heads, heads_per_group, width, states,
    DT_MIN: tl.constexpr, DT_MAX: tl.constexpr, SOFTPLUS: tl.constexpr, WIDTH: tl.constexpr, SLICES: tl.constexpr,
    STATES: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):
    """``y`` [B, L, H, P] and ``last`` [B, H, P, N] are contiguous; a program has WIDTH of the rows P of a head."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // heads_per_group
    i, q = tl.arange(0, STEPS), tl.arange(0, WIDTH)
    p = tl.program_id(0) * WIDTH + q
    inside = (p < width)[None, :]
    # States are in SLICES, the first dimension of what has three: each warp multiplies its own.
    n = (tl.arange(0, SLICES) * STATES)[:, None, None] + tl.arange(0, STATES)[None, None, :]
    known = n < states
    channel = head * width + tl.minimum(p, width - 1)[None, :]
    x_scales, z_scales = scale_of(x_scale, channel, x_per), scale_of(z_scale, channel, z_per)
    dt_scales, out_scales = scale_of(dt_scale, head, dt_per), scale_of(out_scale, channel, out_per)
    B_scales, C_scales = scale_of(B_scale, group, B_per), scale_of(C_scale, group, C_per)
    rate = read(A, head * A_h, True, scale_of(A_scale, 0, 1))
    if A_scale is not None:
        rate = -tl.exp(rate)
    rate *= 1.4426950408889634  # for exp2
    bias = 0.0
    if dt_bias is not None:
        bias = tl.load(dt_bias + head * dt_bias_h).to(tl.float32)

    rows = p[None, :, None]
    h = tl.zeros((SLICES, WIDTH, STATES), tl.float32)
    if initial_states is not None:
        h = read(initial_states + batch * initial_states_b + head * initial_states_h,
                 rows * initial_states_p + n * initial_states_n, (rows < width) & known, 1.0)

    begin = tl.full((), 0, tl.int64)
    for start in range(0, steps, STEPS):
        t = i[:, None]
        now = start + i < steps
        both, all_three = now[:, None] & inside, now[None, :, None] & known
        step = read(dt + batch * dt_b + begin * dt_l + head * dt_h, i * dt_l, now, dt_scales) + bias
        if SOFTPLUS:
            step = softplus(step)
        if DT_MIN is not None:
            step = tl.maximum(step, DT_MIN)
        if DT_MAX is not None:
            step = tl.minimum(step, DT_MAX)
        step = tl.where(now, step, 0.0)  # after the end nothing changes
        change = (step * rate).to(tl.float64)
        total, end = tl.cumsum(change, 0), tl.sum(change, 0)
        high = total.to(tl.float32)
        low = (total - high.to(tl.float64)).to(tl.float32)

        inputs = read(x + batch * x_b + begin * x_l + head * x_h, t * x_l + p[None, :] * x_p, both, x_scales)
        into = read(B + batch * B_b + begin * B_l + group * B_g, i[None, :, None] * B_l + n * B_n, all_three, 1.0)
        out_of = read(C + batch * C_b + begin * C_l + group * C_g, i[None, :, None] * C_l + n * C_n, all_three, 1.0)
        moved = step[:, None] * inputs
        value = tl.sum(tl.dot(out_of, tl.permute(h, (0, 2, 1)), input_precision=PRECISION), 0)
        value *= (tl.exp2(high) * C_scales)[:, None]
        exponent = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
        scores = tl.sum(tl.dot(out_of, tl.permute(into, (0, 2, 1)), input_precision=PRECISION), 0)
        scores *= tl.exp2(tl.where(t >= i[None, :], exponent, float("-inf"))) * (B_scales * C_scales)
        value += tl.dot(scores, moved, input_precision=PRECISION)
        left = tl.trans(moved * (tl.exp2((end - total).to(tl.float32)) * B_scales)[:, None])
        h *= tl.exp2(end.to(tl.float32))
        h += tl.dot(tl.broadcast_to(left[None, :, :], (SLICES, WIDTH, STEPS)), into, input_precision=PRECISION)

        if D is not None:
            value += inputs * read(D, head * D_h + p * D_p, p < width, scale_of(D_scale, 0, 1))[None, :]
        if z is not None:
            value *= silu(read(z + batch * z_b + begin * z_l + head * z_h, t * z_l + p[None, :] * z_p, both, z_scales))
        write(y + ((batch * steps + begin) * heads + head) * width, t * (heads * width) + p[None, :], both, value,
              out_scales)
        begin += STEPS

    at_last = last + (batch * heads + head) * width * states
    tl.store(at_last + rows * states + n, h, mask=(rows < width) & known)
