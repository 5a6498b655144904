"""The C++ kernel of ``torchqx::selective_scan``, built at the first call; elsewhere the formula runs."""

from pathlib import Path

import torch
from torch import Tensor

from torchqx.inductor_kernels.selective_scan.naive import selective_scan_backward, selective_scan_naive
from torchqx.inductor_kernels.selective_scan.schema import LIBRARY
from torchqx.inductor_kernels.state_space.build import is_supported, load_kernel


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "scan.h", "op.cpp")


def first_call(u: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """The operator where no compiled kernel is registered."""
    if not is_supported(u.device):
        return selective_scan_naive(u, *rest)
    load()
    return torch.ops.torchqx.selective_scan.default(u, *rest)


LIBRARY.impl("selective_scan", first_call, "CompositeExplicitAutograd")
LIBRARY.impl("selective_scan_naive", selective_scan_naive, "CompositeExplicitAutograd")
LIBRARY.impl("selective_scan_backward", selective_scan_backward, "CompositeExplicitAutograd")
