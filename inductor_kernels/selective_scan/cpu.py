"""The C++ kernel of ``torchqx::selective_scan``, built at the first call; elsewhere the formula runs."""

from pathlib import Path

from torchqx.inductor_kernels.selective_scan.naive import selective_scan_backward, selective_scan_naive
from torchqx.inductor_kernels.selective_scan.schema import LIBRARY
from torchqx.inductor_kernels.state_space.build import load_kernel, register


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "scan.h", "op.cpp")


register(LIBRARY, "selective_scan", load, selective_scan_naive)
LIBRARY.impl("selective_scan_backward", selective_scan_backward, "CompositeExplicitAutograd")
