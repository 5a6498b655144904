"""u8 activations times s8 weights, with scale, zero point, bias, activation, residual and requantization in one step.

| where | what runs |
|---|---|
| CPU with AVX512-VNNI | ``torch.ops.torchqx.int8_linear``, C++ on the packed weight |
| other CPUs, CUDA, ... | :func:`int8_linear_aten` on the plain weight, fused by Inductor |
| its sums on CUDA | ``torch.ops.torchqx.int8_matmul``, one Triton template with the epilogue in it |
| groups, asymmetric weights | :func:`int8_linear_general_aten` |
| stacked experts | :func:`int8_experts_aten` |
| float activations | :func:`weight_only_linear`, :func:`weight_only_experts` |
"""

from torchqx.inductor_kernels.int8_linear.activations import ACTIVATIONS
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten, int8_linear_general_aten
from torchqx.inductor_kernels.int8_linear.cpu import is_supported, load
from torchqx.inductor_kernels.int8_linear.experts import int8_experts_aten
from torchqx.inductor_kernels.int8_linear.pack import column_sums, pack_int8_weight, unpack_int8_weight
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_group, quantize_per_token, quantize_static
from torchqx.inductor_kernels.int8_linear.weight_only import weight_only_experts, weight_only_linear

__all__ = [
    "ACTIVATIONS",
    "column_sums",
    "int8_experts_aten",
    "int8_linear_aten",
    "int8_linear_general_aten",
    "is_supported",
    "load",
    "pack_int8_weight",
    "quantize_per_group",
    "quantize_per_token",
    "quantize_static",
    "unpack_int8_weight",
    "weight_only_experts",
    "weight_only_linear",
]
