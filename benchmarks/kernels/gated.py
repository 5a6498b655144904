"""A gated pair of int8 linears in one call, beside the wide linear and Inductor's kernel for ``silu(gate) * up``: the
layers of SmolLM2-135M and of Llama 3.2 1B, in bfloat16, each row with its own scale and zero point.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.case import OURS, Arms, Case
from torchqx.inductor_kernels.int8_linear import column_sums, pack_int8_weight, quantize_static

SIZES = [(1, 576, 1536), (128, 576, 1536), (512, 2048, 8192)]
OUT_MUL, OUT_ADD = 20.0, 100.0


def cases() -> list[Case]:
    """Prefill and decode; N is the width of the result."""
    return [Case("gated int8 linear", f"{m} x {k} x {n}", partial(arms, m, k, n), int8=2 * m * k * n)
            for m, k, n in SIZES]


def arms(m: int, k: int, n: int) -> Arms:
    """The calls to compare, on the same random operands; N in whole panels."""
    x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    qdata = torch.randint(-127, 128, (2 * n, k), dtype=torch.int8)
    operands = (x, pack_int8_weight(qdata), torch.rand(2 * n) * 0.1 / k**0.5, column_sums(qdata),
                torch.full((m, 1), 0.02), torch.full((m, 1), 117, dtype=torch.int32), None)
    codes = (torch.tensor([OUT_MUL]), torch.tensor([OUT_ADD]), 0, 255)
    floats = (None, None, 0, 255)
    product, quantized = torch.compile(_product, dynamic=False), torch.compile(_quantized, dynamic=False)

    def gated(out: tuple) -> Tensor:
        return torch.ops.torchqx.int8_linear.default(*operands, "silu", None, *out, torch.bfloat16, 0)

    def wide() -> Tensor:
        return torch.ops.torchqx.int8_linear.default(*operands, "none", None, *floats, torch.bfloat16)

    return {
        OURS: lambda: gated(floats),
        "wide, product": lambda: product(wide()),
        "torchqx u8": lambda: gated(codes),
        "wide, product u8": lambda: quantized(wide(), *codes),
    }


def _product(y: Tensor) -> Tensor:
    gate, up = y.chunk(2, -1)
    return F.silu(gate) * up


def _quantized(y: Tensor, mul: Tensor, add: Tensor, qmin: int, qmax: int) -> Tensor:
    return quantize_static(_product(y), mul, add, qmin, qmax)
