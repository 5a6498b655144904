"""``torchqx::int8_matmul``: int8 by int8 on GPUs, in any shape. Compiled, one Triton kernel does it and what follows.

Inductor would give ``aten._int_mm`` to cuBLASLt, which refuses few rows and odd sizes and writes the int32 sums for
another kernel to read. This operator is always Inductor's own matmul template, so scale, bias, activation, residual and
requantization become its epilogue; tuning chooses among :data:`CONFIGS`.
"""

from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import ir
from torch._inductor.kernel.mm import mm_template
from torch._inductor.lowering import fallback_handler, lowerings, register_lowering
from torch._inductor.select_algorithm import autotune_select_algorithm, realize_inputs

from torchqx.inductor_kernels.int8_linear.schema import LIBRARY

_FEWEST_ROWS, _MULTIPLE = 17, 8  # what cuBLASLt's int8 matmul asks of M, and of K and N

LIBRARY.define("int8_matmul(Tensor x, Tensor qdata) -> Tensor")
INT8_MATMUL = torch.ops.torchqx.int8_matmul.default


@dataclass(frozen=True)
class Config:
    """A tile of the result, the length of one step along K, and how many warps and pipeline stages work on it."""

    m: int
    n: int
    k: int
    stages: int
    warps: int


# Few rows: the weight's bytes set the time, so narrow tiles over many processors and long steps. Many: large tiles. A
# thread that holds more than 32 sums, as in the last two, spills up to 264 bytes in the heaviest epilogue (exact GELU,
# residual and requantization together), once per tile; twice the warps would leave it too few registers.
CONFIGS = (
    Config(16, 64, 128, 5, 4), Config(16, 32, 256, 4, 4), Config(16, 128, 128, 4, 4), Config(32, 64, 128, 4, 4),
    Config(64, 64, 128, 4, 4), Config(64, 128, 64, 4, 8), Config(128, 64, 64, 4, 8),
    Config(128, 128, 64, 3, 8), Config(128, 128, 128, 3, 8),
)


@torch.library.impl(LIBRARY, "int8_matmul", "CompositeExplicitAutograd")
def int8_matmul(x: Tensor, qdata: Tensor) -> Tensor:
    """Σ_k x q: x int8 [M, K] by qdata int8 [N, K] -> int32 [M, N], where nothing is compiled.

    Shapes that the library refuses are padded with zeros.
    """
    m, k, n = x.shape[0], x.shape[1], qdata.shape[0]
    rows = F.pad(x, (0, -k % _MULTIPLE, 0, max(_FEWEST_ROWS - m, 0)))
    weight = F.pad(qdata, (0, -k % _MULTIPLE, 0, -n % _MULTIPLE))
    return torch._int_mm(rows, weight.T)[:m, :n].contiguous()


@torch.library.register_fake("torchqx::int8_matmul")
def _(x: Tensor, qdata: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], qdata.shape[0]), dtype=torch.int32)


@register_lowering(INT8_MATMUL, type_promotion_kind=None)
def lower_int8_matmul(x: ir.TensorBox, qdata: ir.TensorBox) -> ir.TensorBox:
    """Inductor's matmul template on GPUs; elsewhere a call of the operator."""
    if x.get_device().type != "cuda":
        return fallback_handler(INT8_MATMUL, add_to_fallback_set=False)(x, qdata)
    inputs = realize_inputs(x, lowerings[torch.ops.aten.permute.default](qdata, [1, 0]))
    (m, k), n = x.get_size(), qdata.get_size()[0]
    layout = ir.FixedLayout(x.get_device(), torch.int32, [m, n], [n, 1])
    choices: list[Any] = []
    for config in suited(m):
        mm_template.maybe_append_choice(
            choices, input_nodes=inputs, layout=layout, num_stages=config.stages, num_warps=config.warps,
            BLOCK_M=config.m, BLOCK_N=config.n, BLOCK_K=config.k, GROUP_M=8, EVEN_K=int(k) % config.k == 0,
            ALLOW_TF32=False, USE_FAST_ACCUM=False, ACC_TYPE="tl.int32")
    result = autotune_select_algorithm("int8_matmul", choices, inputs, layout)
    return result[0] if isinstance(result, tuple) else result


def suited(rows: int | sympy.Expr) -> list[Config]:
    """The configurations to try for so many rows, the likeliest first; all of them where the number is not known."""
    if not isinstance(rows, int | sympy.Integer):
        return list(CONFIGS)
    # A tile of up to twice the rows wastes nothing that counts: it reads the same bytes of the weight.
    fitting = [c for c in CONFIGS if c.m <= max(16, 2 * int(rows) - 1)]
    tallest = max(c.m for c in fitting)
    return sorted((c for c in fitting if c.m >= tallest // 2), key=lambda c: -c.m)
