"""Mamba2's scan (state-space duality): a state [P, N] per head, one decay per head and step.

| where | what runs |
|---|---|
| CPU with a C++ compiler | C++: the recurrence, two multiply-adds per state element and step |
| CUDA device, with Triton | one kernel: chunks of time on the tensor cores, the state in registers |
| elsewhere, and for float64 | :func:`chunk_scan_naive` |

On a CPU the recurrence needs fewer operations than any chunked form.
"""

from torch.utils._triton import has_triton_package

from torchqx.inductor_kernels.chunk_scan import autograd as _autograd  # noqa: F401  registers the gradient
from torchqx.inductor_kernels.chunk_scan.cpu import load
from torchqx.inductor_kernels.chunk_scan.naive import chunk_scan_naive
from torchqx.inductor_kernels.chunk_scan.schema import check

if has_triton_package():
    from torchqx.inductor_kernels.chunk_scan import gpu as _gpu  # noqa: F401  registers the kernel

__all__ = ["check", "chunk_scan_naive", "load"]
