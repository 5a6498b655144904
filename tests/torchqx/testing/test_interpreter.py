"""Triton's interpreter with what the shim puts right, against torch."""

import pytest
import torch

from tests.torchqx.testing import kernels
from torchqx.errors import UnsupportedError
from torchqx.testing import interpret
from torchqx.testing.libdevice import function


def test_conversions_round_and_saturate() -> None:
    x = torch.cat([torch.randn(56) * 100, torch.tensor([2.5, -0.5, 300.0, -300.0, 1.00390625, 1.01171875, 0.0, 127.0])])
    out = interpret(kernels.convert, (1,), x_ptr=x, bf16_ptr=torch.empty(64, dtype=torch.bfloat16),
                    int8_ptr=torch.empty(64, dtype=torch.int8), rint_ptr=torch.empty(64), n=64)
    assert torch.equal(out["bf16_ptr"], x.bfloat16())
    assert torch.equal(out["int8_ptr"], x.trunc().clamp(-128, 127).to(torch.int8))
    assert torch.equal(out["rint_ptr"], x.round())


def test_bfloat16_arithmetic_is_rounded_after_each_operation() -> None:
    x, y = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    out = interpret(kernels.bfloat16_arithmetic, (1,), x_ptr=x, y_ptr=y, sum_ptr=torch.empty_like(x),
                    dot_ptr=torch.empty(16, 16), n=16)
    assert torch.equal(out["sum_ptr"], x + y * y)
    torch.testing.assert_close(out["dot_ptr"], x.float() @ y.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [64, 2048])
def test_integer_products_are_exact(k: int) -> None:
    a = torch.full((16, k), -128, dtype=torch.int8)
    b = torch.randint(-128, 128, (k, 16), dtype=torch.int8)
    out = interpret(kernels.int8_dot, (1,), a_ptr=a, b_ptr=b, out_ptr=torch.empty(16, 16, dtype=torch.int32), n=16, k=k)
    assert torch.equal(out["out_ptr"].long(), a.long() @ b.long())


def test_scan() -> None:
    a, b = torch.rand(32), torch.randn(32)
    out = interpret(kernels.scan, (1,), a_ptr=a, b_ptr=b, out_ptr=torch.empty(32), n=32)
    h, expected = torch.zeros(()), []
    for t in range(32):
        h = a[t] * h + b[t]
        expected.append(h)
    torch.testing.assert_close(out["out_ptr"], torch.stack(expected))


def test_a_function_that_numpy_was_not_given() -> None:
    assert function("__nv_rsqrtf")(4.0) == 0.5
    assert function("__nv_fast_expf")(0.0) == 1
    with pytest.raises(UnsupportedError, match="__nv_j0f"):
        function("__nv_j0f")
