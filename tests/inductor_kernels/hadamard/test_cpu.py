"""The C++ kernels against the product with the whole matrix in float64."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inductor_kernels.codes import assert_same_codes
from torchqx.inductor_kernels.hadamard import is_supported, load
from torchqx.inductor_kernels.hadamard.aten import (
    hadamard_aten,
    hadamard_quantize_per_token_aten,
    hadamard_quantize_static_aten,
)
from torchqx.inductor_kernels.hadamard.naive import hadamard_naive
from torchqx.rotations import Hadamard, choose

pytestmark = pytest.mark.skipif(not is_supported(), reason="no C++ compiler")
ops = torch.ops.torchqx
# Widths of every kind: no power, powers below a vector, one to sixteen vectors, each radix before them, compiled bases
# and products of two, circulants, bases with room for four, two and one vector of sums, several blocks to a row.
LENGTHS = [1, 2, 3, 4, 8, 16, 32, 63, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
           12, 24, 48, 96, 100, 172, 320, 384, 448, 576, 768, 832, 960, 1000, 1376, 1536, 1856, 2944, 3328, 3456,
           3584, 4480, 5120, 6144, 6912, 8960, 11008, 12288, 14336]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def kernel():
    load()
    torch.manual_seed(0)


def low_precision_error(expected, dtype):
    """What rounding the exact result to the dtype may cost, and float32's own sums."""
    return torch.finfo(dtype).eps * expected.abs().max().item() + 2e-6 * expected.abs().max().item()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("k", LENGTHS)
def test_every_width(poisoned, k, transpose):
    rotation = choose(k, seed=k)
    for dtype in DTYPES:
        x = torch.randn(3, k).to(dtype)
        poisoned(x.shape, dtype)
        y = ops.hadamard(x, rotation.signs(k), rotation.block, transpose)
        exact = hadamard_naive if k < 2000 else hadamard_aten  # the whole matrix would take gigabytes
        expected = exact(x.double(), rotation.signs(k), rotation.block, transpose)
        assert y.dtype == dtype
        assert (y.double() - expected).abs().max() <= low_precision_error(expected, dtype)


@settings(max_examples=40, deadline=None)
@given(lead=st.lists(st.integers(0, 4), max_size=3), count=st.integers(1, 3), seed=st.none() | st.integers(0, 9),
       block=st.sampled_from([1, 2, 4, 12, 16, 20, 40, 64, 112]))
def test_leading_shapes_and_blocks(lead, count, seed, block):
    x = torch.randn(*lead, count * block)
    signs = Hadamard(block, seed).signs(count * block)
    y = ops.hadamard(x, signs, block, False)
    assert y.shape == x.shape
    torch.testing.assert_close(y.double(), hadamard_naive(x, signs, block, False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [
    lambda: torch.randn(5, 200)[:, 100:],
    lambda: torch.randn(7, 3, 100).transpose(0, 1),
    lambda: torch.randn(100, 9).T,
    lambda: torch.randn(4, 1, 100).expand(4, 6, 100),
    lambda: torch.randn(9, 100)[::2],
])
def test_strided_input(make):
    x = make()
    y = ops.hadamard(x, None, 20, False)
    assert y.is_contiguous()
    torch.testing.assert_close(y.double(), hadamard_naive(x, None, 20, False), rtol=1e-5, atol=1e-5)


def test_past_the_caches():
    """Large outputs are written another way; rows of 1000 do not begin on cache lines."""
    for k, block in ((1024, 1024), (1000, 200)):
        x = torch.randn(2**23 // (4 * k) + 1, k)
        y = ops.hadamard(x, None, block, False)
        torch.testing.assert_close(ops.hadamard(y, None, block, True), x, rtol=1e-4, atol=1e-5)
        some = torch.tensor([0, 1, len(x) // 2, len(x) - 1])
        torch.testing.assert_close(y[some].double(), hadamard_naive(x[some], None, block, False), rtol=1e-4, atol=1e-5)


def test_several_threads():
    before = torch.get_num_threads()
    try:
        x = torch.randn(500, 576, dtype=torch.bfloat16)
        torch.set_num_threads(1)
        one = ops.hadamard(x, None, 576, False)
        torch.set_num_threads(2)
        assert torch.equal(ops.hadamard(x, None, 576, False), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extremes_round_as_torch_rounds(dtype):
    """Blocks of 1 only convert, from the dtype and back."""
    x = torch.tensor([0.0, -0.0, 1.0, torch.finfo(dtype).max, -torch.finfo(dtype).max, torch.finfo(dtype).tiny,
                      torch.finfo(dtype).tiny / 4, float("inf"), float("-inf"), float("nan")]).to(dtype)
    for k in (3, 10):  # three: one at a time
        y = ops.hadamard(x[-k:], None, 1, False)
        torch.testing.assert_close(y, x[-k:], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (3, 250), (0, 15), (-127, 127)])
@pytest.mark.parametrize("k", [63, 100, 576, 2048])
def test_static(poisoned, k, qmin, qmax):
    rotation, middle = choose(k, seed=1), (qmin + qmax) / 2
    for dtype in DTYPES:
        x = torch.randn(4, 2, k).to(dtype)
        for shape in ((k,), (1,)):
            mul, add = torch.rand(shape) * (qmax - qmin) / 4 + 1, torch.rand(shape) * 3 + middle
            args = (x, rotation.signs(k), rotation.block, mul, add, qmin, qmax)
            poisoned(x.shape, torch.uint8)
            assert_same_codes(ops.hadamard_quantize_static(*args), hadamard_quantize_static_aten(*args))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_with_nan_says_so(dtype, sign, symmetric):
    x = torch.randn(2, 100).to(dtype)
    x[0, 70] = torch.tensor(float("nan")).copysign(torch.tensor(sign))
    _, scale, _ = ops.hadamard_quantize_per_token(x, None, 1, None, None, 0, 255, symmetric)
    assert scale.isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (0, 15), (-127, 127)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("k", [63, 100, 576, 2048])
def test_per_token(poisoned, k, symmetric, qmin, qmax):
    rotation = choose(k, seed=1)
    for dtype in DTYPES:
        x = (torch.randn(4, 2, k) * torch.rand(4, 2, 1) * 10).to(dtype)
        for smooth, shift, clip_ratio in ((None, None, 1.0), (torch.rand(k) + 0.5, torch.randn(k), 1.0),
                                          (torch.rand(k) + 0.5, None, 0.7)):
            args = (x, rotation.signs(k), rotation.block, smooth, shift, qmin, qmax, symmetric, clip_ratio)
            poisoned(x.shape, torch.uint8)
            codes, scale, zero = ops.hadamard_quantize_per_token(*args)
            expected, expected_scale, expected_zero = hadamard_quantize_per_token_aten(*args)
            assert_same_codes(codes, expected)
            torch.testing.assert_close(scale, expected_scale, rtol=1e-5, atol=0)
            assert zero.dtype == torch.int32
            assert torch.equal(zero, expected_zero)


def test_a_row_of_zeros_has_a_scale():
    codes, scale, zero = ops.hadamard_quantize_per_token(torch.zeros(2, 64), None, 64, None, None, 0, 255, False)
    assert (scale > 0).all()
    assert torch.equal(codes.int(), zero.expand_as(codes))


def test_bad_operands():
    x = torch.randn(2, 24)
    for args, match in (((x, None, 16, False), "multiple of 16"), ((x, torch.ones(12), 12, False), "signs"),
                        ((x, torch.ones(24).double(), 12, False), "signs"), ((x.int(), None, 12, False), "float16"),
                        ((torch.tensor(1.0), None, 1, False), "multiple of 1")):
        with pytest.raises(RuntimeError, match=match):
            ops.hadamard(*args)
    with pytest.raises(RuntimeError, match="mul"):
        ops.hadamard_quantize_static(x, None, 12, torch.ones(3), torch.ones(1), 0, 255)
    with pytest.raises(RuntimeError, match="8 bits"):
        ops.hadamard_quantize_static(x, None, 12, torch.ones(1), torch.ones(1), -1, 255)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-march=x86-64",)])
def test_narrower_machines(flags):
    """The same source for AVX2, and for the oldest 64-bit x86, in a process of its own."""
    code = f"""
import torch
from torchqx.inductor_kernels.cpu_build import load_operators
from torchqx.inductor_kernels.hadamard import cpu
from torchqx.inductor_kernels.hadamard.aten import hadamard_quantize_static_aten
from torchqx.inductor_kernels.hadamard.naive import hadamard_naive
from torchqx.rotations import choose
load_operators(cpu.SOURCES, (*cpu.FLAGS, *{flags}))
for k in (4, 63, 100, 576, 960, 2048, 2752, 3584):
    r = choose(k, seed=1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(3, k).to(dtype)
        y = torch.ops.torchqx.hadamard(x, r.signs(k), r.block, False)
        expected = hadamard_naive(x, r.signs(k), r.block, False)
        assert (y - expected).abs().max() <= (torch.finfo(dtype).eps + 2e-6) * expected.abs().max(), (k, dtype)
        args = x, r.signs(k), r.block, torch.tensor([20.0]), torch.tensor([99.0]), 0, 255
        codes = torch.ops.torchqx.hadamard_quantize_static(*args)
        assert (codes.int() - hadamard_quantize_static_aten(*args).int()).abs().max() <= 1, (k, dtype)
print("right")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("right\n"), result.stderr
