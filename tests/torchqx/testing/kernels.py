"""Hand-written kernels for the tests of the tool; where Triton looks, so must be names of a module."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def convert(x_ptr, bf16_ptr, int8_ptr, rint_ptr, n: tl.constexpr):
    """x as bfloat16, as int8, and rounded."""
    i = tl.arange(0, n)
    x = tl.load(x_ptr + i)
    tl.store(bf16_ptr + i, x.to(tl.bfloat16))
    tl.store(int8_ptr + i, x.to(tl.int8))
    tl.store(rint_ptr + i, libdevice.rint(x))


@triton.jit
def bfloat16_arithmetic(x_ptr, y_ptr, sum_ptr, dot_ptr, n: tl.constexpr):
    """x + y · y, and x @ y."""
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(sum_ptr + at, x + y * y)
    tl.store(dot_ptr + at, tl.dot(x, y))


@triton.jit
def int8_dot(a_ptr, b_ptr, out_ptr, n: tl.constexpr, k: tl.constexpr):
    """a [n, k] @ b [k, n] in int32."""
    i, j = tl.arange(0, n), tl.arange(0, k)
    a = tl.load(a_ptr + i[:, None] * k + j[None, :])
    b = tl.load(b_ptr + j[:, None] * n + i[None, :])
    tl.store(out_ptr + i[:, None] * n + i[None, :], tl.dot(a, b))


@triton.jit
def _recurrence(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def scan(a_ptr, b_ptr, out_ptr, n: tl.constexpr):
    """h_t = a_t h_{t-1} + b_t."""
    i = tl.arange(0, n)
    _, h = tl.associative_scan((tl.load(a_ptr + i), tl.load(b_ptr + i)), 0, _recurrence)
    tl.store(out_ptr + i, h)


@triton.jit
def greedy(x_ptr, out_ptr, n: tl.constexpr):
    """A tile, all of which is held until the end: too much where few registers are allowed."""
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.dot(x, x) + x)


@triton.jit
def nvidia_only(x_ptr, out_ptr, n: tl.constexpr):
    """PTX in the text."""
    i = tl.arange(0, n)
    x = tl.inline_asm_elementwise("cvt.rni.f32.f32 $0, $1;", "=f,f", [tl.load(x_ptr + i)], dtype=tl.float32,
                                  is_pure=True, pack=1)
    tl.store(out_ptr + i, x)
