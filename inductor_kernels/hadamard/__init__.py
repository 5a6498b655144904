"""Rows times a Hadamard matrix, optionally quantized in the same pass: ``torch.ops.torchqx.hadamard*``.

| where | what runs |
|---|---|
| CPU, float32, bfloat16, float16 | C++: the base's sums, then butterflies in cache; rounded or quantized as they end |
| CUDA, compiled, the same dtypes | a Triton template, with its neighbours: see ``gpu`` |
| float64, other devices, not compiled | :func:`hadamard_aten`, one small product per factor |
"""

from torchqx.inductor_kernels.hadamard import gpu as _gpu  # noqa: F401  registers what GPUs compile
from torchqx.inductor_kernels.hadamard import gpu_lowering as _gpu_lowering  # noqa: F401
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
