"""From the products of ``gpu`` to the templates of ``triton_kernel``, with the tile sizes to choose among."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch._inductor import ir
from torch._inductor.lowering import fallback_handler, lowerings, register_lowering
from torch._inductor.select_algorithm import autotune_select_algorithm
from torch._inductor.virtualized import V

from torchqx.inductor_kernels.hadamard.gpu_factors import SMALLEST, WIDEST, Factors, factors
from torchqx.inductor_kernels.hadamard.triton_kernel import TEMPLATES
from torchqx.inductor_kernels.int8_linear.quantize import code_dtype
from torchqx.quantizers import SMALLEST_SCALE

ops = torch.ops.torchqx
PARTS = {torch.bfloat16: (1, 2), torch.float16: (2, 2), torch.float32: (3, 3)}  # of the input, of the sums between
SLICE = {1: 32, 2: 32, 3: 16}  # of a large first factor, at a time, by the parts of the operand: registers are few
_FACTORS: WeakKeyDictionary[Any, dict[tuple[int, torch.device], ir.TensorBox]] = WeakKeyDictionary()
_WRITTEN = ("SCALES", "ZEROS")
_PER_WARP = 1024  # elements of a tile: 32 registers per thread hold its float32 sums


@dataclass(frozen=True)
class Tile:
    """What one program holds: ``width`` elements of each of so many blocks."""

    blocks: int
    width: int
    warps: int


for _op in (ops.hadamard.default, ops.hadamard_quantize_static.default, ops.hadamard_quantize_per_token.default):
    # What does not come apart is called; Inductor wants this said of operators that can.
    register_lowering(_op, type_promotion_kind=None)(fallback_handler(_op, add_to_fallback_set=False))


@register_lowering(ops.hadamard_factor.default, type_promotion_kind=None)
def lower_factor(order: int, device: torch.device) -> ir.TensorBox:
    """One call of the operator in a graph, however many rotations there are; the result is kept between calls."""
    kept = _FACTORS.setdefault(V.graph, {})
    if (order, device) not in kept:
        factor = fallback_handler(ops.hadamard_factor.default, add_to_fallback_set=False)(order, device)
        factor.realize()
        V.graph.never_reuse_buffers.add(factor.get_name())
        kept[order, device] = factor
    return kept[order, device]


@register_lowering(ops.hadamard_blocks.default, type_promotion_kind=None)
def lower_blocks(x: ir.TensorBox, factor: ir.TensorBox | None, block: int, transpose: bool,
                 dtype: torch.dtype) -> ir.TensorBox:
    """The template on GPUs; elsewhere a call of the operator."""
    if x.get_device().type != "cuda":
        return fallback_handler(ops.hadamard_blocks.default, add_to_fallback_set=False)(
            x, factor, block, transpose, dtype)
    return _tuned(x, factor, block, dtype, {}, {"TRANSPOSE": transpose})


@register_lowering(ops.hadamard_blocks_per_token.default, type_promotion_kind=None)
def lower_blocks_per_token(
    x: ir.TensorBox, factor: ir.TensorBox | None, block: int, smooth: ir.TensorBox | None, shift: ir.TensorBox | None,
    qmin: int, qmax: int, symmetric: bool, clip_ratio: float,
) -> tuple[ir.TensorBox, ...]:
    """The template, whose scales and zero points are written beside its result."""
    if x.get_device().type != "cuda":
        return fallback_handler(ops.hadamard_blocks_per_token.default, add_to_fallback_set=False)(
            x, factor, block, smooth, shift, qmin, qmax, symmetric, clip_ratio)
    rows = x.get_size()[0]
    scales, zeros = (lowerings[torch.ops.aten.empty.memory_format]([rows, 1], dtype=dtype, device=x.get_device())
                     for dtype in (torch.float32, torch.int32))
    for made in (scales, zeros):
        made.realize()
    operands = {"SCALES": scales, "ZEROS": zeros} | {
        name: value for name, value in (("SHIFT", shift), ("SMOOTH", smooth)) if value is not None}
    codes = _tuned(x, factor, block, code_dtype(qmin), operands, {
        "TRANSPOSE": False, "SHIFTED": shift is not None, "SMOOTHED": smooth is not None, "SYMMETRIC": symmetric,
        "QMIN": qmin, "QMAX": qmax, "CLIP_RATIO": clip_ratio, "SMALLEST_SCALE": SMALLEST_SCALE})
    return codes, scales, zeros


def _tuned(x: ir.TensorBox, factor: ir.TensorBox | None, block: int, dtype: torch.dtype,
           operands: dict[str, ir.TensorBox], settings: dict[str, Any]) -> ir.TensorBox:
    _fuse_whatever_computes(x)
    if factor is not None:
        operands = {"BASE": factor, **operands}
    inputs = [ir.ExternKernel.realize_input(value) for value in (x, *operands.values())]
    written = [value for name, value in zip(operands, inputs[1:], strict=True) if name in _WRITTEN]
    rows, columns = x.get_size()
    layout = ir.FixedLayout(x.get_device(), dtype, [rows, columns], [columns, sympy.Integer(1)])
    by = factors(block)
    first, later = PARTS[x.get_dtype()]
    steps = tuple((f.order, f.size, f.dense, later if n else first) for n, f in enumerate(reversed(by.parts)))
    template, choices = TEMPLATES[by.sliced, bool(written)], []
    for tile in tiles(by, rows):
        template.maybe_append_choice(
            choices, input_nodes=inputs, layout=layout, mutated_inputs=written or None, num_stages=1,
            num_warps=tile.warps, BLOCK_M=tile.blocks, WIDTH=tile.width, SLICE=SLICE[first], ORDER=block,
            PADDED=by.width, FACTORS=steps, OPERANDS=tuple(operands), SCALE=block**-0.5, **settings)
    result = autotune_select_algorithm(template.name, choices, inputs, layout, return_multi_template=False)
    result = result[0] if isinstance(result, tuple) else result
    if written:  # x is not what the kernel writes beside its result
        result.data.data.has_aliasing_or_mutation_for_prologue_fusion = lambda _: False
    return result


def _fuse_whatever_computes(x: ir.TensorBox) -> None:
    """A tile is loaded once, so what makes it is best computed there, however much it reads: Inductor's doubts about
    prologues (of matmuls, which load each tile many times) do not apply."""
    x.realize()
    buffer = x.data.data if isinstance(x.data, ir.StorageBox) else None
    if isinstance(buffer, ir.ComputedBuffer):
        V.graph.invoke_quant_ops.add(buffer.get_operation_name())


def tiles(by: Factors, rows: int | sympy.Expr) -> list[Tile]:
    """The tiles to try, the likeliest first: no more blocks than rows, but 16 rows of every product.

    Registers decide on the rest. Where a product has fewer rows than columns, Triton places warps side by side, and
    each of them holds all of the rows: then one warp does it, or there are more blocks. Of a crowded product there are
    as few rows as can be, and more warps share the columns.
    """
    if by.sliced:
        width = min(by.width, WIDEST)
        return [Tile(1, width, warps) for warps in ((4, 8) if width <= 4096 else (8,))]
    least = max(1, *(SMALLEST * f.size // by.width for f in by.parts))
    if by.crowded:
        return [Tile(least, by.width, min(8, 2 * least * by.width // _PER_WARP))]
    most = max(least, 1 << (int(rows) - 1).bit_length()) if isinstance(rows, int | sympy.Integer) else 1 << 30
    square = max(f.size for f in by.parts) ** 2
    found = []
    for elements in (4096, 8192, 2048):
        size = by.width * min(most, max(least, elements // by.width))
        size = square if _PER_WARP < size < square else size
        found.append(Tile(size // by.width, by.width, max(1, size // _PER_WARP)))
    return list(dict.fromkeys(found))
