"""The C++ kernel of ``torchqx::chunk_scan``, built at the first call; elsewhere the formula runs."""

from pathlib import Path

from torchqx.inductor_kernels.chunk_scan.naive import chunk_scan_backward, chunk_scan_naive
from torchqx.inductor_kernels.chunk_scan.schema import LIBRARY
from torchqx.inductor_kernels.state_space.build import load_kernel, register


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "scan.h", "op.cpp")


register(LIBRARY, "chunk_scan", load, chunk_scan_naive)
LIBRARY.impl("chunk_scan_backward", chunk_scan_backward, "CompositeExplicitAutograd")
