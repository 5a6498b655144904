"""The causal convolution of a block of channels, over a block of time steps; an update takes all steps, then shifts."""

import triton
import triton.language as tl

from torchqx.inductor_kernels.state_space.triton_operand import read, scale_of, silu, write


@triton.jit
def _tap(weight, weight_d, weight_k, channel, k, scales):
    return read(weight, channel * weight_d + k * weight_k, True, scales)


@triton.jit
def convolve(
    x, x_scale, x_per, x_b, x_d, x_l, weight, weight_scale, weight_per, weight_d, weight_k, bias, bias_d,
    state, state_b, state_d, state_s, y, out_scale, out_per, channels, steps, past, span,
    SILU: tl.constexpr, UPDATE: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
    PAST: tl.constexpr,
):
    """``y`` [B, L, D] is contiguous; a program has CHANNELS of the channels, and ``span`` steps, STEPS at once."""
    first, batch = tl.program_id(1) * span, tl.program_id(2).to(tl.int64)
    corner = tl.program_id(0).to(tl.int64) * CHANNELS
    c = tl.arange(0, CHANNELS)  # offsets within a block have 32 bits, those of its corner 64
    inside, channel = corner + c < channels, tl.minimum(corner + c, channels - 1)
    scales = scale_of(x_scale, channel, x_per) * scale_of(weight_scale, channel, weight_per)
    out_scales = scale_of(out_scale, channel, out_per)
    at_x, at_state = x + batch * x_b + corner * x_d, state
    if state is not None:
        at_state = state + batch * state_b + corner * state_d

    begin = first.to(tl.int64)
    for start in range(first, tl.minimum(first + span, steps), STEPS):
        i = tl.arange(0, STEPS)[:, None]
        now = (start + i < steps) & inside[None, :]
        value = tl.zeros((STEPS, CHANNELS), tl.float32)
        if bias is not None:
            value += tl.load(bias + channel * bias_d).to(tl.float32)[None, :]
        for k in tl.static_range(TAPS):
            at = i + (k - TAPS + 1)
            tap = read(at_x + begin * x_l, at * x_l + c[None, :] * x_d, now & (start + at >= 0), 1.0)
            value += tap * _tap(weight, weight_d, weight_k, channel, k, scales)[None, :]
        if state is not None:  # noqa: SIM102  decided when it is compiled, the next when it runs
            if start < TAPS - 1:
                for k in tl.static_range(TAPS - 1):
                    before = past + start + i + (k - TAPS + 1)
                    tap = read(at_state, before * state_s + c[None, :] * state_d, now & (before >= 0) & (before < past),
                               1.0)
                    value += tap * _tap(weight, weight_d, weight_k, channel, k, scales)[None, :]
        if SILU:
            value = silu(value)
        write(y + (batch * steps + begin) * channels + corner, i * channels + c[None, :], now, value, out_scales)
        begin += STEPS

    if UPDATE:
        s = tl.arange(0, PAST)[None, :]
        kept, known = steps + s < past, (s < past) & inside[:, None]
        at_row = at_state + c[:, None] * state_d
        old = tl.load(at_row + (steps + s) * state_s, mask=kept & known)
        new = tl.load(at_x + c[:, None] * x_d + (steps + s - past) * x_l, mask=known & (steps + s >= past))
        tl.debug_barrier()  # other threads of the program may still have to read what is written now
        tl.store(at_row + s * state_s, tl.where(kept, old, new), mask=known)
