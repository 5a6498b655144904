"""One step of the recurrence for a block of rows of one head; a state without heads has one."""

import triton
import triton.language as tl

from torchqx.inductor_kernels.state_space.triton_operand import read, scale_of, silu, softplus, write


@triton.jit
def update_rows(
    state, y, x, x_scale, x_per, x_b, x_h, x_p, dt, dt_scale, dt_per, dt_b, dt_h, dt_p,
    A, A_scale, A_h, A_p, A_n, B, B_scale, B_per, B_b, B_g, B_n, C, C_scale, C_per, C_b, C_g, C_n,
    D, D_scale, D_h, D_p, z, z_scale, z_per, z_b, z_h, z_p, dt_bias, dt_bias_h, dt_bias_p, out_scale, out_per,
    heads, heads_per_group, width, states,
    SOFTPLUS: tl.constexpr, DECAY_PER_ROW: tl.constexpr, ROWS: tl.constexpr, STATES: tl.constexpr,
):
    """``state`` [B, H, P, N] and ``y`` [B, H, P] are contiguous; a program has ROWS of the rows P, and all N."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // heads_per_group
    p, n = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, STATES)
    inside, known = p < width, n < states
    row = head * width + tl.minimum(p, width - 1)
    both = inside[:, None] & known[None, :]

    inputs = read(x, batch * x_b + head * x_h + p * x_p, inside, scale_of(x_scale, row, x_per))
    step = read(dt, batch * dt_b + head * dt_h + p * dt_p, inside, scale_of(dt_scale, row, dt_per))
    if dt_bias is not None:
        step += read(dt_bias, head * dt_bias_h + p * dt_bias_p, inside, 1.0)
    if SOFTPLUS:
        step = softplus(step)
    if DECAY_PER_ROW:
        rate = read(A, head * A_h + p * A_p, inside, scale_of(A_scale, 0, 1))[:, None]
    else:
        rate = read(A, head * A_h + p[:, None] * A_p + n[None, :] * A_n, both, scale_of(A_scale, 0, 1))
    if A_scale is not None:
        rate = -tl.exp(rate)
    into = read(B, batch * B_b + group * B_g + n * B_n, known, scale_of(B_scale, group, B_per))
    out_of = read(C, batch * C_b + group * C_g + n * C_n, known, scale_of(C_scale, group, C_per))

    at = state + (batch * heads + head) * width * states + p[:, None] * states + n[None, :]
    h = tl.load(at, mask=both, other=0).to(tl.float32)
    h = tl.exp(step[:, None] * rate) * h + (step * inputs)[:, None] * into[None, :]
    tl.store(at, h.to(state.dtype.element_ty), mask=both)
    value = tl.sum(h * out_of[None, :], 1)
    if D is not None:
        value += read(D, head * D_h + p * D_p, inside, scale_of(D_scale, 0, 1)) * inputs
    if z is not None:
        value *= silu(read(z, batch * z_b + head * z_h + p * z_p, inside, scale_of(z_scale, row, z_per)))
    write(y, (batch * heads + head) * width + p, inside, value, scale_of(out_scale, row, out_per))
