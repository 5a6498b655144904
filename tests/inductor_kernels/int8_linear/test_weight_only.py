"""The weight-only matmuls against float64, for every granularity and dtype."""

import pytest
import torch
from torch import Tensor

from torchqx.inductor_kernels.int8_linear import weight_only_experts, weight_only_linear

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def weight(rows: tuple[int, ...], columns: int, groups: int, asymmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points, [*rows, columns] and [*rows] or [*rows, groups]."""
    shape = rows if groups == 1 else (*rows, groups)
    zero = torch.randint(-100, 100, shape, dtype=torch.int32) if asymmetric else None
    return torch.randint(-127, 128, (*rows, columns), dtype=torch.int8), torch.rand(shape) + 0.1, zero


def exact(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None) -> Tensor:
    size = codes.numel() // scale.numel()
    zero = 0 if zero is None else zero.reshape(codes.shape[0], -1).repeat_interleave(size, 1).double()
    matrix = (codes.double() - zero) * scale.reshape(codes.shape[0], -1).repeat_interleave(size, 1).double()
    return x.double() @ matrix.T + (0 if bias is None else bias)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("groups", "asymmetric"), [(1, False), (1, True), (4, False), (4, True)])
def test_linear(groups: int, asymmetric: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, held, bias = torch.randn(3, 7, 100).to(dtype), weight((63,), 100, groups, asymmetric), torch.randn(63)
    y, expected = weight_only_linear(x, *held, bias, dtype), exact(x, *held, bias)
    assert y.dtype == dtype
    assert float((y - expected).norm() / expected.norm()) < ROUNDING[dtype]


def test_sums_of_codes_do_not_overflow_float16() -> None:
    x, codes = torch.full((1, 1000), 1.0).half(), torch.full((2, 1000), 127, dtype=torch.int8)
    y = weight_only_linear(x, codes, torch.full((2,), 0.01), None, None, torch.float16)
    torch.testing.assert_close(y, torch.full((1, 2), 1270.0).half(), rtol=1e-3, atol=0)


@torch.no_grad()
def test_compiled() -> None:
    torch.manual_seed(0)
    x, held, bias = torch.randn(7, 100), weight((63,), 100, 4, True), torch.randn(63)
    y = torch.compile(weight_only_linear, fullgraph=True)(x, *held, bias, torch.float32)
    torch.testing.assert_close(y, weight_only_linear(x, *held, bias, torch.float32), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_experts(groups: int) -> None:
    torch.manual_seed(0)
    x, held, bias = torch.randn(9, 100), weight((3, 63), 100, groups, True), torch.randn(3, 63)
    ends = [0, 4, 7]  # no rows for the first expert, none after the seventh for any
    y = weight_only_experts(x, *held, bias, torch.tensor(ends, dtype=torch.int32), torch.float32)
    for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.testing.assert_close(y[start:end].double(), exact(x[start:end], *(t[e] for t in held), bias[e]),
                                   rtol=1e-5, atol=1e-4)
    assert not y[7:].any()
