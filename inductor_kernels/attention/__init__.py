"""softmax(q kᵀ · scale + mask) v on the CPU, its result quantized for the matmul that reads it, if asked.

| where | what runs |
|---|---|
| CPU with AVX512 (float32), AVX512-BF16 (bfloat16) | ``torch.ops.torchqx.attention``, C++ |
| other CPUs | :func:`attention_aten` |
"""

from torchqx.inductor_kernels.attention.cpu import attention_aten, is_supported, load
from torchqx.inductor_kernels.attention.naive import attention_naive

__all__ = ["attention_aten", "attention_naive", "is_supported", "load"]
