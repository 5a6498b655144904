"""The operators while tracing, compiled, and differentiated; what runs where there is no kernel."""

import pytest
import torch

from torchqx.errors import ShapeError
from torchqx.inductor_kernels.hadamard import (
    check,
    hadamard_aten,
    hadamard_quantize_per_token_aten,
    hadamard_quantize_static_aten,
    is_supported,
)
from torchqx.inductor_kernels.hadamard.naive import hadamard_naive
from torchqx.rotations import Hadamard

ops = torch.ops.torchqx
needs_kernel = pytest.mark.skipif(not is_supported(), reason="no C++ compiler")


def test_check():
    x = torch.randn(2, 24)
    check(x, torch.ones(24), 12)
    for bad, signs, block in ((x, None, 16), (x, None, 3), (x, torch.ones(12), 12), (torch.tensor(1.0), None, 1)):
        with pytest.raises(ShapeError):
            check(bad, signs, block)


def test_fake_shapes():
    with torch._subclasses.FakeTensorMode() as mode:
        x = mode.from_tensor(torch.randn(2, 5, 24, dtype=torch.bfloat16).transpose(0, 1))
        one = mode.from_tensor(torch.ones(1))
        y = ops.hadamard(x, None, 12, False)
        assert (y.shape, y.dtype, y.is_contiguous()) == ((5, 2, 24), torch.bfloat16, True)
        for qmin, qmax, dtype in ((0, 255, torch.uint8), (-127, 127, torch.int8)):
            y = ops.hadamard_quantize_static(x, None, 12, one, one, qmin, qmax)
            assert (y.shape, y.dtype) == ((5, 2, 24), dtype)
            codes, scale, zero = ops.hadamard_quantize_per_token(x, None, 12, None, None, qmin, qmax, False)
            assert (codes.shape, codes.dtype) == ((5, 2, 24), dtype)
            assert (scale.shape, scale.dtype) == ((5, 2, 1), torch.float32)
            assert (zero.shape, zero.dtype) == ((5, 2, 1), torch.int32)
        with pytest.raises(ShapeError, match="blocks of 16"):
            ops.hadamard(x, None, 16, False)


@needs_kernel
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_gradient(seed, transpose):
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    signs = Hadamard(12, seed).signs(24)
    assert torch.autograd.gradcheck(lambda t: ops.hadamard(t, signs, 12, transpose), x)


@needs_kernel
def test_opcheck():
    x, signs, one = torch.randn(3, 24), Hadamard(12, 1).signs(24), torch.ones(1)
    torch.library.opcheck(ops.hadamard.default, (x.requires_grad_(), signs, 12, False))
    x = x.detach()
    torch.library.opcheck(ops.hadamard.default, (x.T.contiguous().T, None, 12, True))
    torch.library.opcheck(ops.hadamard_quantize_static.default, (x, signs, 12, one, one, 0, 255))
    torch.library.opcheck(ops.hadamard_quantize_per_token.default, (x, signs, 12, None, None, 0, 255, True))


@needs_kernel
def test_compiled_with_a_symbolic_batch():
    torch._dynamo.reset()
    signs = Hadamard(20, 1).signs(40)

    def f(x):
        y = ops.hadamard(x * 2, signs, 20, False)
        return y, *ops.hadamard_quantize_per_token(y.transpose(0, 1), None, 20, None, None, 0, 255, False)

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for lead in ((2, 3), (5, 7), (4, 2)):
        x = torch.randn(*lead, 40)
        for got, expected in zip(compiled(x), f(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_formulas():
    """What runs without a compiler; the kernels cannot be taken back once this process has them."""
    x, signs = torch.randn(3, 40, dtype=torch.bfloat16), Hadamard(20, 1).signs(40)
    expected = hadamard_naive(x, signs, 20, False)
    assert (hadamard_aten(x, signs, 20, False) - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert hadamard_aten(x.double(), signs, 20, False).dtype == torch.float64
    codes = hadamard_quantize_static_aten(x, signs, 20, torch.tensor([20.0]), torch.tensor([99.0]), 0, 255)
    assert (codes.double() - (expected * 20 + 99).clamp(0, 255)).abs().max() <= 0.51
    codes, scale, zero = hadamard_quantize_per_token_aten(x, signs, 20, None, None, 0, 255, False)
    assert (((codes.double() - zero) * scale) - expected).abs().max() <= scale.max() * 0.51
