"""The causal depthwise convolution before a state-space scan, with bias and SiLU: whole sequences and single steps.

| where | what runs |
|---|---|
| CPU with a C++ compiler | C++: sixteen channels at once |
| CUDA device, with Triton | one kernel; an update's also shifts the state |
| elsewhere, and for float64 | :func:`causal_conv1d_naive`, :func:`causal_conv1d_update_naive` |
"""

from torch.utils._triton import has_triton_package

from torchqx.inductor_kernels.causal_conv1d import autograd as _autograd  # noqa: F401  registers the gradient
from torchqx.inductor_kernels.causal_conv1d.cpu import load
from torchqx.inductor_kernels.causal_conv1d.naive import causal_conv1d_naive, causal_conv1d_update_naive
from torchqx.inductor_kernels.causal_conv1d.schema import ACTIVATIONS, check

if has_triton_package():
    from torchqx.inductor_kernels.causal_conv1d import gpu as _gpu  # noqa: F401  registers the kernel

__all__ = ["ACTIVATIONS", "causal_conv1d_naive", "causal_conv1d_update_naive", "check", "load"]
