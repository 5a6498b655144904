"""The C++ kernel of ``torchqx::state_update``, built at the first call; elsewhere the formula runs."""

from pathlib import Path

import torch
from torch import Tensor

from torchqx.inductor_kernels.state_space.build import is_supported, load_kernel
from torchqx.inductor_kernels.state_update.naive import state_update_naive
from torchqx.inductor_kernels.state_update.schema import LIBRARY


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "update.h", "op.cpp")


def first_call(state: Tensor, *rest: object) -> Tensor:
    """The operator where no compiled kernel is registered."""
    if not is_supported(state.device):
        return state_update_naive(state, *rest)
    load()
    return torch.ops.torchqx.state_update.default(state, *rest)


LIBRARY.impl("state_update", first_call, "CompositeExplicitAutograd")
LIBRARY.impl("state_update_naive", state_update_naive, "CompositeExplicitAutograd")
