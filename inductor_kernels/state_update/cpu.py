"""The C++ kernel of ``torchqx::state_update``, built at the first call; elsewhere the formula runs."""

from pathlib import Path

from torchqx.inductor_kernels.state_space.build import load_kernel, register
from torchqx.inductor_kernels.state_update.naive import state_update_naive
from torchqx.inductor_kernels.state_update.schema import LIBRARY


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "update.h", "op.cpp")


register(LIBRARY, "state_update", load, state_update_naive)
