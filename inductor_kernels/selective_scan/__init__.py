"""Mamba's selective scan: discretisation, recurrence, skip connection and gate in one pass over time.

| where | what runs |
|---|---|
| CPU with a C++ compiler | C++: sixteen channels at once, their states in registers |
| CUDA device, with Triton | one kernel: a channel per thread, its states in registers |
| elsewhere, and for float64 | :func:`selective_scan_naive` |
"""

from torch.utils._triton import has_triton_package

from torchqx.inductor_kernels.selective_scan import autograd as _autograd  # noqa: F401  registers the gradient
from torchqx.inductor_kernels.selective_scan.cpu import load
from torchqx.inductor_kernels.selective_scan.naive import selective_scan_naive
from torchqx.inductor_kernels.selective_scan.schema import check

if has_triton_package():
    from torchqx.inductor_kernels.selective_scan import gpu as _gpu  # noqa: F401  registers the kernel

__all__ = ["check", "load", "selective_scan_naive"]
