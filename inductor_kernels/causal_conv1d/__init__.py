"""The causal depthwise convolution before a state-space scan, with bias and SiLU: whole sequences and single steps.

| where | what runs |
|---|---|
| CPU with a C++ compiler | C++: sixteen channels at once |
| elsewhere, and for float64 | :func:`causal_conv1d_naive`, :func:`causal_conv1d_update_naive` |
"""

from torchqx.inductor_kernels.causal_conv1d import autograd as _autograd  # noqa: F401  registers the gradient
from torchqx.inductor_kernels.causal_conv1d.cpu import load
from torchqx.inductor_kernels.causal_conv1d.naive import causal_conv1d_naive, causal_conv1d_update_naive
from torchqx.inductor_kernels.causal_conv1d.schema import ACTIVATIONS, check

__all__ = ["ACTIVATIONS", "causal_conv1d_naive", "causal_conv1d_update_naive", "check", "load"]
