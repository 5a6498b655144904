"""The mark that a value is written once."""

import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token
from torchqx.inductor_kernels.stored import STORED


def test_is_the_identity_on_its_own_memory() -> None:
    for x in (torch.randn(63, 100), torch.randn(3, 5).T, torch.zeros(0), torch.tensor(True)):
        y = STORED(x)
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        assert torch.equal(x, y)
        assert x.numel() == 0 or y.data_ptr() != x.data_ptr()


def test_compiled_the_expression_is_computed_once() -> None:
    def twice(x: Tensor, mark: bool) -> tuple[Tensor, Tensor]:
        angle = x.cos()
        angle = STORED(angle) if mark else angle
        return angle[:, None] * torch.ones(100, 63), angle[:, None] * torch.ones(100, 1000)

    x, counts = torch.randn(100), []
    for mark in (False, True):
        torch._dynamo.reset()
        result, (code,) = run_and_get_code(torch.compile(twice), x, mark)
        torch.testing.assert_close(result, twice(x, mark))
        counts.append(code.count("cos("))
    assert counts[1] < counts[0]


def test_compiled_a_row_is_divided_once() -> None:
    x = torch.randn(63, 1000)
    torch._dynamo.reset()
    result, (code,) = run_and_get_code(torch.compile(quantize_per_token), x, None, None, 0, 255, False)
    for got, wanted in zip(result, quantize_per_token(x, None, None, 0, 255, False), strict=True):
        torch.testing.assert_close(got.float(), wanted.float(), rtol=1e-6, atol=1)  # a rounding may go the other way
    last_loop = code[code.rindex("for(int64_t x1") :].partition("'''")[0]
    assert "uint8_t" in last_loop
    assert not any(division in last_loop for division in ("reciprocal", " / "))
