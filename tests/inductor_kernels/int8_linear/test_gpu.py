"""The GPU's integer matmul where no GPU is, and the tiles it chooses from. What it compiles to: tests/gpu."""

import pytest
import sympy
import torch

from torchqx.inductor_kernels.int8_linear.gpu import CONFIGS, INT8_MATMUL, suited
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 63, 100), (16, 100, 63), (17, 8, 8), (40, 1000, 9)])
def test_any_shape(m: int, k: int, n: int) -> None:
    x, q = codes(m, k), codes(n, k)
    assert torch.equal(INT8_MATMUL(x, q).long(), x.long() @ q.long().T)
    torch.library.opcheck(INT8_MATMUL, (x, q), test_utils=("test_schema", "test_faketensor"))


def test_compiled_for_the_cpu_it_is_a_call() -> None:
    x, q = codes(5, 20), codes(7, 20)
    result = torch.compile(lambda a, b: INT8_MATMUL(a, b) * 2, dynamic=False)(x, q)
    assert torch.equal(result, INT8_MATMUL(x, q) * 2)


def test_stored_changes_nothing() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(torch.ops.torchqx.stored(x), x)
    assert torch.equal(torch.compile(lambda a: torch.ops.torchqx.stored(a + 1) * 2, dynamic=False)(x), (x + 1) * 2)
    torch.library.opcheck(torch.ops.torchqx.stored.default, (x,), test_utils=("test_schema", "test_faketensor"))


def test_tiles_fit_the_rows() -> None:
    assert {c.m for c in suited(1)} == {16}
    assert {c.m for c in suited(33)} == {32, 64}
    assert {c.m for c in suited(4096)} == {64, 128}
    assert suited(sympy.Symbol("rows")) == list(CONFIGS)
    for rows in (1, 16, 17, 64, 1000):
        assert len(suited(rows)) >= 3


def test_codes_are_int8_where_they_begin_below_zero() -> None:
    x, mul, add = torch.randn(4, 9), torch.tensor([20.0]), torch.tensor([130.0])
    unsigned = quantize_static(x, mul, add, 0, 255)
    signed = quantize_static(x, mul, add - 128, -128, 127)
    assert unsigned.dtype == torch.uint8
    assert signed.dtype == torch.int8
    assert torch.equal(unsigned.int() - 128, signed.int())
