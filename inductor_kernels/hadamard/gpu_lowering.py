"""From the products of ``gpu`` to the templates of ``triton_kernel``, with the tile sizes to choose among."""

from typing import Any

import sympy
import torch
from torch._inductor import ir
from torch._inductor.lowering import fallback_handler, lowerings, register_lowering
from torch._inductor.select_algorithm import TritonTemplate, autotune_select_algorithm
from torch._inductor.virtualized import V

from torchqx.inductor_kernels.hadamard.gpu_factors import factors, width
from torchqx.inductor_kernels.hadamard.triton_kernel import PER_TOKEN, PRODUCT
from torchqx.inductor_kernels.int8_linear.quantize import code_dtype
from torchqx.quantizers import SMALLEST_SCALE

ops = torch.ops.torchqx
PARTS = {torch.bfloat16: (1, 2), torch.float16: (2, 2), torch.float32: (3, 3)}  # of the input, of the sums between
_PER_WARP = 1024  # elements of a tile: 32 registers per thread hold its float32 sums


@register_lowering(ops.hadamard_blocks.default, type_promotion_kind=None)
def lower_blocks(x: ir.TensorBox, factor: ir.TensorBox | None, block: int, transpose: bool,
                 dtype: torch.dtype) -> ir.TensorBox:
    """The template on GPUs; elsewhere a call of the operator."""
    if x.get_device().type != "cuda":
        return fallback_handler(ops.hadamard_blocks.default, add_to_fallback_set=False)(
            x, factor, block, transpose, dtype)
    return _tuned(PRODUCT, x, factor, block, dtype, {}, {"TRANSPOSE": transpose})


@register_lowering(ops.hadamard_blocks_per_token.default, type_promotion_kind=None)
def lower_blocks_per_token(
    x: ir.TensorBox, factor: ir.TensorBox | None, block: int, smooth: ir.TensorBox | None, shift: ir.TensorBox | None,
    qmin: int, qmax: int, symmetric: bool,
) -> tuple[ir.TensorBox, ...]:
    """The template, whose scales and zero points are written beside its result."""
    if x.get_device().type != "cuda":
        return fallback_handler(ops.hadamard_blocks_per_token.default, add_to_fallback_set=False)(
            x, factor, block, smooth, shift, qmin, qmax, symmetric)
    rows = x.get_size()[0]
    scales, zeros = (lowerings[torch.ops.aten.empty.memory_format]([rows, 1], dtype=dtype, device=x.get_device())
                     for dtype in (torch.float32, torch.int32))
    for made in (scales, zeros):
        made.realize()
    operands = {"SCALES": scales, "ZEROS": zeros} | {
        name: value for name, value in (("SHIFT", shift), ("SMOOTH", smooth)) if value is not None}
    codes = _tuned(PER_TOKEN, x, factor, block, code_dtype(qmin), operands, {
        "TRANSPOSE": False, "SHIFTED": shift is not None, "SMOOTHED": smooth is not None, "SYMMETRIC": symmetric,
        "QMIN": qmin, "QMAX": qmax, "SMALLEST_SCALE": SMALLEST_SCALE})
    return codes, scales, zeros


def _tuned(template: TritonTemplate, x: ir.TensorBox, factor: ir.TensorBox | None, block: int, dtype: torch.dtype,
           operands: dict[str, ir.TensorBox], settings: dict[str, Any]) -> ir.TensorBox:
    _fuse_whatever_computes(x)
    if factor is not None:
        operands = {"BASE": factor, **operands}
        factor.realize()
        V.graph.never_reuse_buffers.add(factor.get_name())  # it is kept between calls
    inputs = [ir.ExternKernel.realize_input(value) for value in (x, *operands.values())]
    rows, columns = x.get_size()
    layout = ir.FixedLayout(x.get_device(), dtype, [rows, columns], [columns, sympy.Integer(1)])
    first, later = PARTS[x.get_dtype()]
    parts = [first, *(later for _ in factors(block)[1:])]
    steps = tuple((f.order, f.size, f.dense, p) for f, p in zip(reversed(factors(block)), parts, strict=True))
    choices: list[Any] = []
    for count, warps in tiles(block, rows):
        template.maybe_append_choice(
            choices, input_nodes=inputs, layout=layout, num_stages=1, num_warps=warps, BLOCK_M=count,
            ORDER=block, WIDTH=width(factors(block)), FACTORS=steps, SCALE=block**-0.5,
            OPERANDS=tuple(operands), mutated_inputs=[v for n, v in zip(operands, inputs[1:], strict=True)
                                                      if n in ("SCALES", "ZEROS")] or None, **settings)
    result = autotune_select_algorithm(template.name, choices, inputs, layout)
    return result[0] if isinstance(result, tuple) else result


def _fuse_whatever_computes(x: ir.TensorBox) -> None:
    """A tile is loaded once, so what makes it is best computed there, however much it reads: Inductor's doubts about
    prologues (of matmuls, which load each tile many times) do not apply."""
    x.realize()
    buffer = x.data.data if isinstance(x.data, ir.StorageBox) else None
    if isinstance(buffer, ir.ComputedBuffer):
        V.graph.invoke_quant_ops.add(buffer.get_operation_name())


def tiles(block: int, rows: Any) -> list[tuple[int, int]]:
    """(blocks per program, warps), the likeliest first; no more blocks than there are rows, but 16 rows per product."""
    sizes = factors(block)
    least = max(1, max(16 * f.size for f in sizes) // width(sizes))
    found = []
    for elements, warps in ((4096, 4), (8192, 8), (2048, 2), (16384, 16)):
        count = max(least, elements // width(sizes))
        if isinstance(rows, int | sympy.Integer):
            count = max(least, min(count, 1 << (int(rows) - 1).bit_length()))
        warps = max(1, min(warps, count * width(sizes) // 512)) if count * width(sizes) <= elements else \
            count * width(sizes) // _PER_WARP
        if (count, warps) not in found:
            found.append((count, warps))
    return found
