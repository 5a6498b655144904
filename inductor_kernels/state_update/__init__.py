"""One step of a state-space recurrence, in place on the state: Mamba's and Mamba2's decoding.

| where | what runs |
|---|---|
| CPU with a C++ compiler | C++: one pass over the state |
| CUDA device, with Triton | one kernel: one pass over the state |
| elsewhere, and for float64 | :func:`state_update_naive` |
"""

from torch.utils._triton import has_triton_package

from torchqx.inductor_kernels.state_update.cpu import load
from torchqx.inductor_kernels.state_update.naive import state_update_naive
from torchqx.inductor_kernels.state_update.schema import check

if has_triton_package():
    from torchqx.inductor_kernels.state_update import gpu as _gpu  # noqa: F401  registers the kernel

__all__ = ["check", "load", "state_update_naive"]
