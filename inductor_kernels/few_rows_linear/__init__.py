"""x Wᵀ + bias in float for a few rows of x: the plain weight is read once, as fast as it comes from memory.

| where | what runs |
|---|---|
| CPU with AVX512 | ``torch.ops.torchqx.few_rows_linear``, C++ |
| elsewhere | ``torch.nn.functional.linear`` |
"""

from torchqx.inductor_kernels.few_rows_linear.cpu import is_supported, load
from torchqx.inductor_kernels.few_rows_linear.naive import few_rows_linear_naive

__all__ = ["few_rows_linear_naive", "is_supported", "load"]
