"""The C++ kernel of ``torchqx::chunk_scan``, built at the first call; elsewhere the formula runs."""

from pathlib import Path

import torch
from torch import Tensor

from torchqx.inductor_kernels.chunk_scan.naive import chunk_scan_backward, chunk_scan_naive
from torchqx.inductor_kernels.chunk_scan.schema import LIBRARY
from torchqx.inductor_kernels.state_space.build import is_supported, load_kernel


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "scan.h", "op.cpp")


def first_call(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """The operator where no compiled kernel is registered."""
    if not is_supported(x.device):
        return chunk_scan_naive(x, *rest)
    load()
    return torch.ops.torchqx.chunk_scan.default(x, *rest)


LIBRARY.impl("chunk_scan", first_call, "CompositeExplicitAutograd")
LIBRARY.impl("chunk_scan_naive", chunk_scan_naive, "CompositeExplicitAutograd")
LIBRARY.impl("chunk_scan_backward", chunk_scan_backward, "CompositeExplicitAutograd")
