"""Mamba2's scan (state-space duality): a state [P, N] per head, one decay per head and step.

| where | what runs |
|---|---|
| CPU with a C++ compiler | C++: the recurrence, two multiply-adds per state element and step |
| elsewhere, and for float64 | :func:`chunk_scan_naive` |

The name is that of the Mamba2 kernel; on a CPU the recurrence needs fewer operations than any chunked form.
"""

from torchqx.inductor_kernels.chunk_scan import autograd as _autograd  # noqa: F401  registers the gradient
from torchqx.inductor_kernels.chunk_scan.cpu import load
from torchqx.inductor_kernels.chunk_scan.naive import chunk_scan_naive
from torchqx.inductor_kernels.chunk_scan.schema import check

__all__ = ["check", "chunk_scan_naive", "load"]
