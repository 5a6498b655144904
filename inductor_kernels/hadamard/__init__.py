"""Rows times a Hadamard matrix, optionally quantized in the same pass: ``torch.ops.torchqx.hadamard*``.

| where | what runs |
|---|---|
| CPU, float32, bfloat16, float16 | C++: butterflies in cache, then the base's sums; then rounded or quantized |
| float64, other devices | :func:`hadamard_aten`, one small product per factor |
"""

from torchqx.inductor_kernels.hadamard.aten import (
    hadamard_aten,
    hadamard_quantize_per_token_aten,
    hadamard_quantize_static_aten,
)
from torchqx.inductor_kernels.hadamard.cpu import is_supported, load
from torchqx.inductor_kernels.hadamard.schema import check

__all__ = [
    "check",
    "hadamard_aten",
    "hadamard_quantize_per_token_aten",
    "hadamard_quantize_static_aten",
    "is_supported",
    "load",
]
