"""Quantizing activations: error bounds, agreement with the quantizer, and what Inductor makes of it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor.utils import run_and_get_code

from torchqx.inductor_kernels.int8_linear import quantize_per_group, quantize_per_token, quantize_static
from torchqx.quantizers import AffineQuantizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_holds_shift_smoothing_scale_and_zero_point(dtype):
    torch.manual_seed(0)
    x = torch.randn(5, 63, dtype=dtype) * 3 + 1
    smooth, shift, scale, zero_point = torch.rand(63) + 0.5, torch.randn(63), 0.03, 101
    mul = 1 / (smooth * scale)
    q = quantize_static(x, mul, zero_point - shift * mul, 0, 255)
    assert q.dtype == torch.uint8
    expected = (torch.round((x.double() - shift) / smooth / scale) + zero_point).clamp(0, 255)
    assert (q.double() - expected).abs().max() <= 1
    assert (q.double() != expected).double().mean() < 0.02


def test_static_clamps_and_rounds_half_to_even():
    one, zero = torch.ones(1), torch.zeros(1)
    x = torch.tensor([-3.0, 0.5, 1.5, 2.5, 70.0])
    assert quantize_static(x, one, zero, 0, 63).tolist() == [0, 0, 2, 2, 63]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6), groups=st.integers(1, 4), size=st.integers(1, 33), bits=st.integers(2, 8),
       symmetric=st.booleans(), scale=st.sampled_from([1e-6, 1.0, 1e4]), seed=st.integers(0, 99))
def test_error_is_half_a_step(rows, groups, size, bits, symmetric, scale, seed):
    torch.manual_seed(seed)
    quantizer = AffineQuantizer(bits=bits, symmetric=symmetric, granularity="group", group_size=size, dynamic=True)
    x = torch.randn(rows, groups * size) * scale
    inv_smooth, shift = torch.rand(groups * size) + 0.5, torch.randn(groups * size) * scale
    q, s, z = quantize_per_group(x, inv_smooth, shift, quantizer.qmin, quantizer.qmax, symmetric, size)
    assert q.shape == x.shape
    assert s.shape == z.shape == (rows, groups)
    assert (q.dtype, s.dtype, z.dtype) == (torch.uint8, torch.float32, torch.int32)
    y = (x - shift) * inv_smooth
    low, high = quantizer.range_of(y)
    expected_scale, expected_zero = quantizer.parameters(low, high)
    torch.testing.assert_close(s, expected_scale.squeeze(-1), rtol=1e-5, atol=0)
    assert (z - expected_zero.squeeze(-1)).abs().max() <= 1
    back = quantizer.dequantize(q, s[..., None], z[..., None])
    assert ((back - y).abs().unflatten(-1, (groups, size)) <= s[..., None] * 1.01).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipped_ranges_are_the_quantizers(symmetric):
    quantizer = AffineQuantizer(4, symmetric, "token", dynamic=True, clip_ratio=0.7)
    x = torch.randn(5, 63)
    q, s, z = quantize_per_token(x, None, None, quantizer.qmin, quantizer.qmax, symmetric, 0.7)
    torch.testing.assert_close(quantizer.dequantize(q, s, z), quantizer.fake_quantize(x))
    group = quantize_per_group(x, None, None, quantizer.qmin, quantizer.qmax, symmetric, 63, 0.7)
    assert all(torch.equal(a, b) for a, b in zip((q, s, z), group, strict=True))


def test_per_token_is_one_group_and_accepts_zeros():
    x = torch.randn(2, 3, 64).bfloat16()
    for qmin, symmetric in ((0, False), (1, True)):
        q, s, z = quantize_per_token(x, None, None, qmin, 255, symmetric)
        assert s.shape == z.shape == (2, 3, 1)
        group = quantize_per_group(x, None, None, qmin, 255, symmetric, 64)
        assert all(torch.equal(a, b) for a, b in zip((q, s, z), group, strict=True))
        q, s, z = quantize_per_token(torch.zeros(2, 8), None, None, qmin, 255, symmetric)
        assert torch.equal(q.int(), z.expand(2, 8))


def kernels_of(function, *args):
    """Results of the compiled function, and how many C++ kernels it is made of."""
    with torch.no_grad():
        result, (code,) = run_and_get_code(torch.compile(function, fullgraph=True), *args)
        expected = function(*args)
    return result, expected, code.count("async_compile.cpp_pybinding(")


def norm_and_static(x, weight, bias, mul, add):
    return quantize_static(F.layer_norm(x, (x.shape[-1],), weight, bias), mul, add, 0, 255)


def norm_and_per_token(x, weight, bias, inv_smooth, shift):
    return quantize_per_token(F.layer_norm(x, (x.shape[-1],), weight, bias), inv_smooth, shift, 0, 255, False)


def test_norm_and_static_quantization_are_one_kernel():
    torch._dynamo.reset()
    args = (torch.randn(10, 384), torch.rand(384), torch.randn(384), torch.rand(384) * 40, torch.full((1,), 128.0))
    q, expected, kernels = kernels_of(norm_and_static, *args)
    assert kernels == 1
    assert (q.int() - expected.int()).abs().max() <= 1


def test_norm_and_per_token_quantization_are_one_kernel():
    torch._dynamo.reset()
    args = (torch.randn(10, 384), torch.rand(384), torch.randn(384), torch.rand(384) + 0.5, torch.randn(384))
    (q, scale, zero_point), expected, kernels = kernels_of(norm_and_per_token, *args)
    assert kernels == 1
    assert (q.int() - expected[0].int()).abs().max() <= 1
    torch.testing.assert_close(scale, expected[1])
    assert (zero_point - expected[2]).abs().max() <= 1
