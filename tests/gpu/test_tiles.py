"""Tiles among which tuning chooses, with all that can stand in an epilogue: only the largest spill, and little."""

import pytest
import torch
from torch import Tensor

from tests.gpu.blocks import CODES, operands
from tests.gpu.checks import no_integer_matmul
from torchqx.inductor_kernels.int8_linear import gpu, int8_linear_aten
from torchqx.testing import lower_for_gpu

ROWS, K, N = 512, 768, 256
MOST_SUMS, MOST_SPILLS = 32, 288  # sums per thread without a spill; bytes per thread where there are more


def whole(x: Tensor, q: Tensor, scale: Tensor, column_sum: Tensor, x_scale: Tensor, zero: Tensor, bias: Tensor,
          residual: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    return int8_linear_aten(x, q, scale, column_sum, x_scale, zero, bias, "gelu", residual, mul, add, *CODES,
                            torch.float32)


@pytest.mark.parametrize("config", [gpu.CONFIGS[2], gpu.CONFIGS[5], gpu.CONFIGS[-1]], ids=str)
def test_spills(config: gpu.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "suited", lambda rows: [config])
    inputs = (*operands(ROWS, K, N), torch.randn(N), torch.randn(ROWS, N), torch.rand(1), torch.randn(1))
    program = lower_for_gpu(whole, inputs)
    assert program.grids == [(-(-ROWS // config.m) * -(-N // config.n), 1, 1)]
    reports = program.compile()
    ((report,),) = reports.values()
    sums = config.m * config.n // (32 * config.warps)
    assert report.spills <= (0 if sums <= MOST_SUMS else MOST_SPILLS)
    assert not no_integer_matmul(reports)
