"""Linears that stayed float and have few rows (a step of decoding, the head of the last token) -> our kernel.

    before   linear(x, W, b)                     x @ W.T
    after    few_rows_linear(x, W, b)            few_rows_linear(x, t(W.T), None)

A call that the kernel does not cover, or whose number of rows is not known before the graph runs, stays as it is.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchqx.fx_passes.erase import replace
from torchqx.fx_passes.sites.ops import argument, fake, is_mapped, op_name
from torchqx.inductor_kernels.few_rows_linear.cpu import is_supported

FEW_ROWS = torch.ops.torchqx.few_rows_linear.default
MOST_ROWS = {torch.float32: 8, torch.bfloat16: 16}
SMALLEST = 1 << 14  # elements of a weight; below, most of the time is that of the call itself


def use_few_rows_kernel(gm: GraphModule) -> GraphModule:
    """Replace in place; returns ``gm``."""
    for node in list(gm.graph.nodes):
        if op_name(node) == "linear":
            x, weight, bias = (argument(node, i, name) for i, name in enumerate(("input", "weight", "bias")))
            transposed = False
        elif op_name(node) in ("matmul", "mm"):
            x, weight, bias = argument(node, 0, "input", "self"), argument(node, 1, "other", "mat2"), None
            transposed = True
        else:
            continue
        if _is_covered(node, x, weight, bias, transposed):
            _replace(node, x, weight, bias, transposed)
    gm.graph.lint()
    gm.recompile()
    return gm


def pays(dtype: torch.dtype, rows: int, elements: int) -> bool:
    """Whether the kernel is faster than torch's linear for a weight of so many elements.

    Times faster on one core, the weight read from memory (576 x 576 to 576 x 49152, 768 x 3072, 4096 x 4096):

    | rows | float32 | bfloat16 with AVX512-BF16 | bfloat16 without |
    |---|---|---|---|
    | 1 | 1.2 to 2.1 | 1.7 to 2.7 | 1.0 to 2.4 |
    | 2 to 6 | 1.2 to 3.1 | 1.2 to 3.3 | 2.4 to 4.6 |
    | 7 to 8 | 1.2 to 2.0 | 1.0 to 2.9 | 3.6 to 4.0 |
    | 16 | 1.2 to 1.7, from cache 0.8 to 1.0 | 1.1 to 2.0 | 3.3 to 3.4 |

    With AMX, torch multiplies bfloat16 on tiles, which this kernel does not.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return False
    return rows <= MOST_ROWS[dtype] and elements >= SMALLEST


def _is_covered(node: Node, x: Any, weight: Any, bias: Any, transposed: bool) -> bool:
    """Whether the kernel computes what ``node`` does, and pays. Where autocast is on, the result has another dtype."""
    operands = [x, weight] if bias is None else [x, weight, bias]
    values = [fake(operand) for operand in operands]
    if fake(node) is None or "out" in node.kwargs:
        return False
    if any(v is None or is_mapped(n) for v, n in zip(values, operands, strict=True)):
        return False
    rows, matrix = values[:2]
    sizes = (*rows.shape, *matrix.shape)
    if matrix.ndim != 2 or rows.ndim == 0 or not all(isinstance(size, int) for size in sizes):
        return False
    if not (matrix.T if transposed else matrix).is_contiguous():
        return False
    if bias is not None and values[2].shape != matrix.shape[:1]:
        return False
    if any(v.dtype != fake(node).dtype for v in values) or not is_supported(rows.device, rows.dtype):
        return False
    return pays(rows.dtype, prod(rows.shape[:-1]), matrix.numel())


def _replace(node: Node, x: Node, weight: Node, bias: Node | None, transposed: bool) -> None:
    with node.graph.inserting_before(node):
        if transposed:
            weight = node.graph.call_function(Tensor.t, (weight,))
        new = node.graph.call_function(FEW_ROWS, (x, weight, bias))
    replace(node, new)
