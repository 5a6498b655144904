"""Which kernel computes a quantized matmul, and with which inputs.

| kernel | where | weight | activation |
|---|---|---|---|
| packed | CPU with AVX512-VNNI | symmetric, per channel or tensor | per tensor or token |
| plain | any device; on GPUs codes are int8 | the same | the same |
| experts | any device | any, stacked | any |
| general | any device | any | any |
| weight only | any device | any | float |
"""

import operator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from torchqx.fx_passes import derived as d
from torchqx.fx_passes.sites import Form, LinearOp
from torchqx.inductor_kernels import hadamard as _hadamard  # noqa: F401  registers the operators
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten, int8_linear_general_aten
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import (
    quantize_per_group,
    quantize_per_token,
    quantize_static,
    transformed,
)
from torchqx.inductor_kernels.int8_linear.weight_only import weight_only_linear
from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard

PACKED = torch.ops.torchqx.int8_linear.default
EXPERTS = torch.ops.torchqx.int8_experts.default
WEIGHT_ONLY_EXPERTS = torch.ops.torchqx.weight_only_experts.default
HADAMARD = torch.ops.torchqx.hadamard.default
NO_REQUANTIZE = (None, None, 0, 255)
WRITTEN = (torch.float32, torch.bfloat16)  # what the kernels write themselves
CODE_SCALES = "code_scales"
"""In the ``meta`` of a quantizer of int8 codes around a constant zero point: the shape of its multiplier."""


@dataclass(frozen=True)
class OpStructure:
    """Everything about a quantized matmul that its code depends on; values are inputs.

    Attributes:
        rotation, norm: what comes before smooth and shift: (x / g) R, and whether there is a g.
        output_rotation: in which the matmul leaves its result. Ops that differ in this alone still run as one.
        sharing: ops that read one activation and have equal numbers here read one quantized tensor.
    """

    activation: AffineQuantizer
    weight: AffineQuantizer
    smooth: bool
    shift: bool
    device: torch.device
    sharing: int = 0
    rotation: Hadamard | None = None
    norm: bool = False
    output_rotation: Hadamard | None = None


class Emitter(Protocol):
    """Writes into the new graph, on behalf of ``ops``: matmuls that read one quantized activation."""

    ops: list[LinearOp]

    def call(self, target: Any, *args: Any) -> Node: ...

    def derived(self, build: d.Build, *others: Node | None) -> Node: ...

    def rotated(self, x: Node, rotation: Hadamard, op: LinearOp, output: bool) -> Node: ...


def is_simple(structure: OpStructure) -> bool:
    """Whether one scale per output and one per row (or in all) describe the matmul."""
    return structure.weight.symmetric and structure.weight.group_size is None and \
        structure.activation.granularity in ("tensor", "token")


def held(structure: OpStructure) -> AffineQuantizer:
    """The activation's quantizer as the matmul takes the codes: GPUs multiply int8 by int8, so from the middle on."""
    return replace(structure.activation, signed=structure.device.type == "cuda")


def quantize_rows(emit: Emitter, structure: OpStructure, rows: Node) -> tuple[Node, Any, Any]:
    """Codes, scale and zero point of ``rows``; scale and zero point are None where the weight carries them, and where
    the rows stay in float."""
    q = held(structure)
    if structure.norm:
        rows = emit.call(torch.div, rows, emit.derived(d.norm))
    if structure.rotation is not None:
        rows = emit.rotated(rows, structure.rotation, emit.ops[0], output=False)
    if not q.dynamic:
        addend = emit.derived(d.signed_addend if q.signed else d.addend)
        codes = emit.call(quantize_static, rows, emit.derived(d.multiplier), addend, q.qmin, q.qmax)
        if q.bits == 8 and q.symmetric and not structure.smooth and not structure.shift:
            codes.meta[CODE_SCALES] = (1,)
        return codes, None, None
    moved = (emit.derived(d.smooth) if structure.smooth else None, emit.derived(d.shift) if structure.shift else None)
    if q.granularity == "none":
        return (emit.call(transformed, rows, *moved) if any(moved) else rows), None, None
    common = (*moved, q.qmin, q.qmax, q.symmetric)
    clip = () if q.clip_ratio == 1 else (q.clip_ratio,)
    if q.granularity == "group":
        result = emit.call(quantize_per_group, rows, *common, q.group_size, *clip)
    else:
        result = emit.call(quantize_per_token, rows, *common, *clip)
    return tuple(emit.call(operator.getitem, result, i) for i in range(3))


def matmul(emit: Emitter, structure: OpStructure, rows: tuple[Node, Any, Any], bias: Node | None,
           dtype: torch.dtype) -> Node:
    """The matmul of quantized ``rows`` with the ops' weights side by side: [..., N] in ``dtype``."""
    codes, scale, zero = rows
    if not structure.activation.dynamic:
        scale = emit.derived(d.act_scale)
        zero = emit.derived(d.signed_act_zero if held(structure).signed else d.act_zero)
    zero_point = None if structure.weight.symmetric else emit.derived(d.weight_zero)
    if structure.activation.granularity == "none":
        weight = (emit.derived(d.plain), emit.derived(d.weight_scale), zero_point)
        if emit.ops[0].form is Form.EXPERTS:
            return emit.call(WEIGHT_ONLY_EXPERTS, codes, *weight, bias, emit.ops[0].offsets, dtype)
        return emit.call(weight_only_linear, codes, *weight, bias, dtype)
    if emit.ops[0].form is Form.EXPERTS:
        result = emit.call(EXPERTS, codes, emit.derived(d.plain), emit.derived(d.weight_scale),
                           emit.derived(d.column_sum), scale, zero, bias, emit.ops[0].offsets, zero_point)
        return emit.call(Tensor.to, result, dtype)
    written = dtype if dtype in WRITTEN else torch.float32
    tail = (scale, zero, bias, "none", None, *NO_REQUANTIZE, written)
    if not is_simple(structure):
        result = emit.call(int8_linear_general_aten, codes, emit.derived(d.plain), emit.derived(d.weight_scale),
                           zero_point, *tail)
    else:
        kernel, data = (PACKED, d.packed) if is_supported(structure.device) else (int8_linear_aten, d.plain)
        result = emit.call(kernel, codes, emit.derived(data), emit.derived(d.weight_scale),
                           emit.derived(d.column_sum), *tail)
    return result if written == dtype else emit.call(Tensor.to, result, dtype)
