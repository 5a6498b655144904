"""The int8 linear kernel beside oneDNN's and a prepacked bfloat16 linear, on the layers of MiniLM, BERT and SmolLM2.

``_int_mm`` is the bare integer matmul on a plain weight; ``qlinear`` is prepacked, with scales, bias and a float32
result, as ours. Both come again with GELU and requantization, ours also with a scale and zero point per row and a
residual.
"""

from functools import partial

import torch

from benchmarks.kernels.case import OURS, Arms, Case
from torchqx.inductor_kernels.int8_linear import column_sums, pack_int8_weight

LAYERS = [(384, 1152), (384, 384), (384, 1536), (1536, 384), (768, 2304), (768, 768), (768, 3072), (3072, 768),
          (576, 960), (576, 3072), (1536, 576)]
HEAD = (576, 49152)  # of the last token alone, or of a few
ROWS, HEAD_ROWS = (1, 4, 16, 64, 128, 512, 1024, 4096), (1, 4, 16)
SCALE, ZERO_POINT, OUT_SCALE, OUT_ZERO_POINT = 0.02, 117, 0.05, 100


def cases() -> list[Case]:
    """Every layer with every number of rows."""
    sizes = [(m, *layer) for layer in LAYERS for m in ROWS] + [(m, *HEAD) for m in HEAD_ROWS]
    return [Case("int8 linear", f"{m} x {k} x {n}", partial(arms, m, k, n), int8=m * k * n) for m, k, n in sizes]


def arms(m: int, k: int, n: int) -> Arms:
    """The calls to compare, on the same random operands."""
    x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    qdata = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    weight_scale, bias = torch.rand(n) * 0.01 / k**0.5, torch.randn(n)
    packed, sums = pack_int8_weight(qdata), column_sums(qdata)
    scale, zero_point = torch.tensor([SCALE]), torch.tensor([ZERO_POINT], dtype=torch.int32)
    out_mul, out_add = torch.tensor([1 / OUT_SCALE]), torch.tensor([float(OUT_ZERO_POINT)])
    prepacked = torch.ops.onednn.qlinear_prepack(qdata, list(x.shape))
    zeros = torch.zeros(n, dtype=torch.int32)
    row_scale, row_zero_point = scale.expand(m).contiguous(), zero_point.expand(m).contiguous()
    residual = torch.randn(m, n, dtype=torch.bfloat16)
    half, half_bias = torch.randn(m, k, dtype=torch.bfloat16), bias.bfloat16()
    half_weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(n, k, dtype=torch.bfloat16), m)

    def ours(activation: str, mul: torch.Tensor | None, add: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.torchqx.int8_linear.default(x, packed, weight_scale, sums, scale, zero_point, bias, activation,
                                                     None, mul, add, 0, 255, torch.float32)

    def per_token() -> torch.Tensor:
        return torch.ops.torchqx.int8_linear.default(x, packed, weight_scale, sums, row_scale, row_zero_point, bias,
                                                     "none", residual, None, None, 0, 255, torch.bfloat16)

    def qlinear(activation: str, dtype: torch.dtype, out_scale: float, out_zero: int) -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise.default(x, SCALE, ZERO_POINT, prepacked, weight_scale, zeros, bias,
                                                          out_scale, out_zero, dtype, activation, [], "none")

    return {
        OURS: lambda: ours("none", None, None),
        "_int_mm": lambda: torch._int_mm(x, qdata.T),
        "qlinear": lambda: qlinear("none", torch.float32, 1.0, 0),
        "bf16": lambda: torch.ops.mkldnn._linear_pointwise(half, half_weight, half_bias, "none", [], ""),
        "torchqx per token": per_token,
        "torchqx gelu u8": lambda: ours("gelu", out_mul, out_add),
        "qlinear gelu u8": lambda: qlinear("gelu", torch.uint8, OUT_SCALE, OUT_ZERO_POINT),
    }
