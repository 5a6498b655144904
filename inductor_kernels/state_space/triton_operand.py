"""What the Triton kernels share: reading floats or codes as float32, writing either, softplus and SiLU.

A name ``x`` of a tensor goes with ``x_scale``, its scales or None, and ``x_per``, the channels that share one.
"""

import triton
import triton.language as tl


@triton.jit
def scale_of(scale, channel, per):
    """The float32 scales of ``channel``, which must exist; 1 for floats."""
    if scale is None:
        found = 1.0
    else:
        found = tl.load(scale + channel // per)
    return found


@triton.jit
def read(data, offset, mask, scale):
    """code · scale, or the float; 0 where masked."""
    zero: tl.constexpr = 128 if data.dtype.element_ty == tl.uint8 else 0
    return (tl.load(data + offset, mask=mask, other=zero).to(tl.float32) - zero) * scale


@triton.jit
def write(data, offset, mask, value, scale):
    """The float, or the code clamp(round(value / scale), -127, 127)."""
    if data.dtype.element_ty.is_int():
        zero: tl.constexpr = 128 if data.dtype.element_ty == tl.uint8 else 0
        code = tl.minimum(tl.maximum(value / scale, -127.0), 127.0)
        value = (code + 12582912.0) - 12582912.0 + zero  # float32 holds no fractions up there: rounds, ties to even
    tl.store(data + offset, value.to(data.dtype.element_ty), mask=mask)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + 2 artanh(s), s = e / (2 + e), e = exp(-|x|): exact also where it is tiny."""
    e = tl.exp(-tl.abs(x))
    s = e / (2 + e)
    q = s * s
    series = 2 + q * (2 / 3 + q * (2 / 5 + q * (2 / 7 + q * (2 / 9 + q * (2 / 11 + q * (2 / 13))))))
    return tl.maximum(x, 0.0) + s * series


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))
