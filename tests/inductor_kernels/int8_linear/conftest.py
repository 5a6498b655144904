"""Random operands of an int8 linear."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from torchqx.inductor_kernels.int8_linear import column_sums, pack_int8_weight


@dataclass
class Operands:
    x: Tensor
    qdata: Tensor
    packed: Tensor
    weight_scale: Tensor
    column_sum: Tensor
    x_scale: Tensor
    x_zero_point: Tensor
    bias: Tensor


@pytest.fixture
def operands() -> Callable[..., Operands]:
    """Makes operands for x [*lead, K] and N columns; ``per_token`` gives each row its own scale and zero point."""

    def make(lead: tuple[int, ...], k: int, n: int, per_token: bool = False) -> Operands:
        torch.manual_seed(k * 1000 + n)
        qdata = torch.randint(-128, 128, (n, k), dtype=torch.int8)
        rows = (*lead, 1) if per_token else (1,)
        return Operands(
            x=torch.randint(0, 256, (*lead, k), dtype=torch.uint8),
            qdata=qdata,
            packed=pack_int8_weight(qdata),
            weight_scale=torch.rand(n) * 0.02 / k**0.5 + 1e-5,
            column_sum=column_sums(qdata),
            x_scale=torch.rand(rows) * 0.02 + 0.01,
            x_zero_point=torch.randint(0, 256, rows, dtype=torch.int32),
            bias=torch.randn(n),
        )

    return make
