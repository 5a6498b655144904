"""The C++ kernel against the same in plain torch, and against float64."""

import pytest
import torch
from torch import Tensor

from tests.inductor_kernels.codes import assert_same_codes
from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.quantize_norm import QUANTIZE_NORM, is_supported, load, quantize_norm_aten

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STEP = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # of the result's dtype, relative


@pytest.fixture(autouse=True)
def kernel() -> None:
    load()
    torch.manual_seed(0)


def operands(x: Tensor, weight: bool = True, bias: bool = True, one: bool = False) -> list:
    """All of the operator's but the last; ``one``: a single multiplier and addend."""
    k = x.shape[-1]
    w, b = ((torch.rand(k) + 0.5).to(x.dtype) if weight else None), (torch.randn(k).to(x.dtype) if bias else None)
    mul, add = (torch.full((1,), 20.0), torch.full((1,), 128.0)) if one else (torch.rand(k) * 20, torch.randn(k) * 10)
    return [x, w, b, 1e-5, mul, add, 0, 255]


def assert_same(args: list) -> None:
    """With the result and without, the codes are those of plain torch."""
    expected, codes = quantize_norm_aten(*args, True)
    result, own = QUANTIZE_NORM(*args, True)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(result, expected, rtol=STEP[result.dtype], atol=1e-5)
    assert_same_codes(own, codes)
    nothing, again = QUANTIZE_NORM(*args, False)
    assert nothing.shape == (0,)
    assert torch.equal(again, own)


@pytest.mark.parametrize("k", [1, 15, 63, 64, 100, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_torch(poisoned, dtype, k) -> None:
    for weight, bias, one in ((True, True, False), (True, False, True), (False, False, False), (False, True, True)):
        args = operands((torch.randn(4, 2, k) * 3 + torch.randn(4, 2, 1)).to(dtype), weight, bias, one)
        for size in (dtype, torch.uint8):
            poisoned((4, 2, k), size)
        assert_same(args)


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 15), (-127, 127)])
def test_ranges_of_codes(qmin, qmax) -> None:
    args = operands(torch.randn(5, 100))
    assert_same([*args[:-2], qmin, qmax])


def test_parameters_of_another_dtype() -> None:
    args = operands(torch.randn(5, 100).bfloat16())
    assert_same([args[0], args[1].float(), args[2].half(), *args[3:]])


@pytest.mark.parametrize("make", [
    lambda: torch.randn(5, 200)[:, 100:],
    lambda: torch.randn(7, 3, 100).transpose(0, 1),
    lambda: torch.randn(100, 9).T,
    lambda: torch.randn(4, 1, 100).expand(4, 6, 100),
])
def test_strided_input(make) -> None:
    assert_same(operands(make()))


def test_many_rows_on_several_threads_and_past_the_caches() -> None:
    assert_same(operands(torch.randn(3000, 100)))
    assert_same(operands(torch.randn(8192, 1088).bfloat16()))


def test_a_mean_far_from_zero_leaves_the_digits() -> None:
    """The variance is that of the differences, as in float64, not a difference of large squares."""
    x = torch.randn(6, 768) + 1000
    args = operands(x)
    result, _ = QUANTIZE_NORM(*args, True)
    exact = torch.nn.functional.layer_norm(x.double(), (768,), args[1].double(), args[2].double(), 1e-5)
    assert (result - exact).abs().max() < 1e-3


def test_zeros_nothing_and_nan() -> None:
    args = operands(torch.zeros(2, 64), bias=False)
    assert QUANTIZE_NORM(*args, True)[0].eq(0).all()
    args[0] = torch.zeros(0, 64)
    assert [t.shape for t in QUANTIZE_NORM(*args, True)] == [(0, 64), (0, 64)]
    args[0] = torch.randn(2, 64)
    args[0][0, 40] = torch.nan
    assert QUANTIZE_NORM(*args, True)[0].isnan().all(-1).tolist() == [True, False]


def test_bad_operands() -> None:
    x = torch.randn(2, 8)
    args, wide = operands(x), operands(x.double(), False, False)
    with pytest.raises(RuntimeError, match="weight must be contiguous, of 8"):
        QUANTIZE_NORM(x, torch.rand(7), *args[2:], True)
    with pytest.raises(RuntimeError, match="weight must be float32, bfloat16 or float16"):
        QUANTIZE_NORM(x, torch.rand(8).double(), *args[2:], True)
    with pytest.raises(RuntimeError, match="mul must be contiguous float32 of 8"):
        QUANTIZE_NORM(*args[:4], torch.rand(3), *args[5:], True)
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float16"):
        QUANTIZE_NORM(*wide, True)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        with pytest.raises(ShapeError, match="bias of shape"):
            QUANTIZE_NORM(*fakes[:2], mode.from_tensor(torch.rand(1)), *fakes[3:], True)
        with pytest.raises(UnsupportedError, match="float64"):
            QUANTIZE_NORM(mode.from_tensor(wide[0]), *[None] * 2, *fakes[3:], True)


@pytest.mark.parametrize("keep", [True, False])
def test_traced(keep) -> None:
    torch.library.opcheck(QUANTIZE_NORM, (*operands(torch.randn(3, 20)), keep))
