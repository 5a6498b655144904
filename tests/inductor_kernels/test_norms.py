"""Norms in plain torch against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.inductor_kernels.norms import layer_norm, rms_norm


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [63, 100, 1000])
@pytest.mark.parametrize("affine", [False, True])
def test_as_precise_as_torch(dtype: torch.dtype, size: int, affine: bool) -> None:
    x = (torch.randn(3, 5, size) * 4 + 20).to(dtype)
    weight, bias = (torch.randn(size).to(dtype), torch.randn(size).to(dtype)) if affine else (None, None)
    double = [None if v is None else v.double() for v in (x, weight, bias)]
    exact = F.layer_norm(double[0], (size,), double[1], double[2], 1e-5)
    result = layer_norm(x, weight, bias, 1e-5, dtype)
    assert result.dtype == dtype
    assert error(result, exact) <= 1.1 * error(F.layer_norm(x, (size,), weight, bias, 1e-5), exact) + 1e-7
    exact = F.rms_norm(double[0], (size,), double[1], 1e-5)
    result = rms_norm(x, weight, 1e-5, dtype)
    assert result.dtype == dtype
    assert error(result, exact) <= 1.1 * error(F.rms_norm(x, (size,), weight, 1e-5), exact) + 1e-7
