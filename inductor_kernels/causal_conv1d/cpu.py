"""The C++ kernels of ``torchqx::causal_conv1d`` and its update, built at the first call; elsewhere the formulas run."""

from pathlib import Path

import torch
from torch import Tensor

from torchqx.inductor_kernels.causal_conv1d.naive import causal_conv1d_naive, causal_conv1d_update_naive
from torchqx.inductor_kernels.causal_conv1d.schema import LIBRARY
from torchqx.inductor_kernels.state_space.build import is_supported, load_kernel


def load() -> None:
    """Build (once per machine) and register the kernels.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "conv.h", "op.cpp")


def first_call(x: Tensor, *rest: object) -> Tensor:
    """The convolution where no compiled kernel is registered."""
    if not is_supported(x.device):
        return causal_conv1d_naive(x, *rest)
    load()
    return torch.ops.torchqx.causal_conv1d.default(x, *rest)


def first_update(x: Tensor, *rest: object) -> Tensor:
    """The update where no compiled kernel is registered."""
    if not is_supported(x.device):
        return causal_conv1d_update_naive(x, *rest)
    load()
    return torch.ops.torchqx.causal_conv1d_update.default(x, *rest)


LIBRARY.impl("causal_conv1d", first_call, "CompositeExplicitAutograd")
LIBRARY.impl("causal_conv1d_naive", causal_conv1d_naive, "CompositeExplicitAutograd")
LIBRARY.impl("causal_conv1d_update", first_update, "CompositeExplicitAutograd")
LIBRARY.impl("causal_conv1d_update_naive", causal_conv1d_update_naive, "CompositeExplicitAutograd")
