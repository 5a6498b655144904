"""The C++ kernel against the same in plain torch."""

import pytest
import torch

from tests.inductor_kernels.codes import assert_same_codes
from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token
from torchqx.inductor_kernels.quantize_rows import is_supported, load

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no C++ compiler")
quantize_rows = torch.ops.torchqx.quantize_rows.default
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def kernel() -> None:
    load()
    torch.manual_seed(0)


def assert_same(result: tuple, expected: tuple) -> None:
    """Codes, scales and zero points."""
    for a, b in zip(result, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert_same_codes(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1], rtol=1e-6, atol=0)
    assert (result[2] - expected[2]).abs().max() <= (result[0].dtype == torch.uint8)


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (0, 15), (-127, 127)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("k", [1, 15, 63, 64, 100, 1000])
def test_against_torch(poisoned, k, symmetric, qmin, qmax) -> None:
    for dtype in DTYPES:
        x = (torch.randn(4, 2, k) * torch.rand(4, 2, 1) * 10).to(dtype)
        for smooth, shift, clip in ((None, None, 1.0), (torch.rand(k) + 0.5, torch.randn(k), 1.0),
                                    (torch.rand(k) + 0.5, None, 0.7), (torch.rand(1) + 0.5, torch.randn(1), 1.0)):
            args = (x, smooth, shift, qmin, qmax, symmetric, clip)
            poisoned(x.shape, torch.uint8)
            assert_same(quantize_rows(*args), quantize_per_token(*args))


@pytest.mark.parametrize("make", [
    lambda: torch.randn(5, 200)[:, 100:],
    lambda: torch.randn(7, 3, 100).transpose(0, 1),
    lambda: torch.randn(100, 9).T,
    lambda: torch.randn(4, 1, 100).expand(4, 6, 100),
])
def test_strided_input(make) -> None:
    args = (make(), None, None, 0, 255, False)
    assert_same(quantize_rows(*args), quantize_per_token(*args))


def test_many_rows_on_several_threads() -> None:
    args = (torch.randn(3000, 100), torch.rand(100), torch.randn(100), 0, 255, False)
    assert_same(quantize_rows(*args), quantize_per_token(*args))


def test_past_the_caches() -> None:
    args = (torch.randn(8192, 1088), None, None, 0, 255, False)
    assert_same(quantize_rows(*args), quantize_per_token(*args))


def test_zeros_nothing_and_nan() -> None:
    codes, scale, zero = quantize_rows(torch.zeros(2, 64), None, None, 0, 255, False)
    assert scale.min() > 0
    assert (codes.int() == zero).all()
    assert [t.shape for t in quantize_rows(torch.zeros(0, 64), None, None, 0, 255, False)] == [(0, 64), (0, 1), (0, 1)]
    x = torch.randn(2, 100)
    x[0, 70] = torch.nan
    assert quantize_rows(x, None, None, 0, 255, False)[1].isnan().flatten().tolist() == [True, False]


def test_bad_operands() -> None:
    x = torch.randn(2, 8)
    wide = x.double()
    with pytest.raises(RuntimeError, match="smooth must be contiguous float32 of 8"):
        quantize_rows(x, torch.rand(7), None, 0, 255, False)
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float16"):
        quantize_rows(wide, None, None, 0, 255, False)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(ShapeError, match="inv_smooth of shape"):
        quantize_rows(mode.from_tensor(x), mode.from_tensor(torch.rand(7)), None, 0, 255, False)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(UnsupportedError, match="float64"):
        quantize_rows(mode.from_tensor(wide), None, None, 0, 255, False)


def test_traced() -> None:
    args = (torch.randn(3, 20), torch.rand(20), None, 0, 255, False)
    torch.library.opcheck(quantize_rows, args)
