"""The C++ kernel against the float64 formula, and against torch's own error."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchqx.inductor_kernels.few_rows_linear import few_rows_linear_naive, is_supported, load

DTYPES = (torch.float32, torch.bfloat16)
pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu"), torch.float32), reason="no kernel here")
op = torch.ops.torchqx.few_rows_linear.default


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    load()


def operands(rows: int, k: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)


def poison(rows: int, n: int, dtype: torch.dtype) -> None:
    """Frees a NaN-filled block of the size of the result: the allocator hands it to the next one."""
    torch.full((rows, n), float("nan"), dtype=dtype)


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """As exact as torch is, up to a quarter and, in float32, what the order of a sum changes, relative to its terms."""
    exact = few_rows_linear_naive(x, weight, bias)
    poison(len(x), len(weight), x.dtype)
    y = op(x, weight, bias)
    assert (y.dtype, y.shape, y.is_contiguous()) == (x.dtype, exact.shape, True)
    terms = few_rows_linear_naive(x.abs(), weight.abs(), None if bias is None else bias.abs())
    own, torchs = ((value - exact).norm() / terms.norm() for value in (y, F.linear(x, weight, bias)))
    assert own <= 1.25 * torchs + 2e-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 16])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (15, 3), (16, 4), (33, 5), (63, 100), (576, 1000), (1000, 63), (4097, 6)])
def test_odd_sizes(rows: int, k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, bias = operands(rows, k, n, dtype)
    check(x, weight, bias)
    check(x, weight, None)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 20), k=st.integers(1, 300), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_whole_numbers_are_exact(rows: int, k: int, n: int, seed: int) -> None:
    """In float32 whatever the order; in bfloat16 up to the rounding of the result."""
    torch.manual_seed(seed)
    x, weight, bias = (torch.randint(-8, 9, size).float() for size in ((rows, k), (n, k), (n,)))
    exact = few_rows_linear_naive(x, weight, bias)
    assert torch.equal(op(x, weight, bias).double(), exact)
    assert torch.equal(op(x.bfloat16(), weight.bfloat16(), bias.bfloat16()), exact.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_result_for_any_number_of_threads_and_rows(dtype: torch.dtype) -> None:
    x, weight, bias = operands(16, 576, 1001, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = op(x, weight, bias)
        torch.set_num_threads(3)
        assert torch.equal(op(x, weight, bias), expected)
    finally:
        torch.set_num_threads(before)
    for rows in range(1, 16):
        assert torch.equal(op(x[:rows], weight, bias), expected[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_stay_in_their_row_and_column(dtype: torch.dtype) -> None:
    x, weight, _ = operands(3, 100, 10, dtype)
    x[1, 99], weight[7, 3] = float("nan"), float("inf")
    y = op(x, weight, None)
    assert y[1].isnan().all()
    assert y[[0, 2], 7].isinf().all()
    assert y[[0, 2]][:, :7].isfinite().all()


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    """Sums of two numbers, so that nothing but the rounding is seen; above the largest number it is infinite."""
    x = torch.cat([torch.randn(2000), torch.tensor([1.00390625, 1.01171875])])
    high = x.bfloat16()
    largest = torch.tensor([[torch.finfo(torch.bfloat16).max, 2.0**119]]).bfloat16()
    pairs = torch.cat([torch.stack([high, (x - high.float()).bfloat16()], -1), largest])
    expected = pairs.float().sum(-1).bfloat16()
    assert expected[-1].isinf()
    assert torch.equal(op(pairs, torch.ones(1, 2, dtype=torch.bfloat16), None)[:, 0], expected)


def test_any_shape_and_stride_of_x_and_weight() -> None:
    x, weight, bias = operands(6, 64, 10, torch.float32)
    expected = op(x, weight, bias)
    assert torch.equal(op(x.view(2, 3, 64), weight, bias), expected.view(2, 3, 10))
    assert torch.equal(op(x[0], weight, bias), expected[0])
    apart = torch.stack([x, x], -1)[..., 0]
    assert apart.stride(-1) == 2
    assert torch.equal(op(apart, weight.T.contiguous().T, torch.stack([bias, bias], -1)[:, 0]), expected)
    assert op(x[:0], weight, bias).shape == (0, 10)
    assert op(x, weight[:0], bias[:0]).shape == (6, 0)
    assert torch.equal(op(x[:, :0], weight[:, :0], bias), bias.expand(6, 10))


def test_wrong_operands_are_refused() -> None:
    x, weight, bias = operands(2, 8, 4, torch.float32)
    with pytest.raises(RuntimeError, match="one length"):
        op(x[:, :5], weight, None)
    with pytest.raises(RuntimeError, match="one length"):
        op(x, weight[0], None)
    with pytest.raises(RuntimeError, match="bias has one element"):
        op(x, weight, bias[:2])
    with pytest.raises(RuntimeError, match="one dtype"):
        op(x, weight.bfloat16(), None)
    with pytest.raises(RuntimeError, match="float32 or bfloat16"):
        op(x.double(), weight.double(), None)


@pytest.mark.slow
def test_without_products_of_bfloat16() -> None:
    """The same source for processors that widen them first, in a process of its own."""
    code = """
import torch
from torchqx.inductor_kernels.cpu_build import load_operators
from torchqx.inductor_kernels.few_rows_linear import cpu, few_rows_linear_naive
load_operators(cpu.SOURCES, (*cpu.FLAGS, "-mno-avx512bf16"))
for rows, k, n in ((1, 63, 100), (5, 576, 1000), (8, 1000, 63)):
    x, weight = torch.randn(rows, k).bfloat16(), torch.randn(n, k).bfloat16()
    exact = few_rows_linear_naive(x, weight, None)
    y = torch.ops.torchqx.few_rows_linear(x, weight, None)
    assert (y - exact).norm() < 0.003 * exact.norm(), (rows, k, n)
print("right")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("right\n"), result.stderr
