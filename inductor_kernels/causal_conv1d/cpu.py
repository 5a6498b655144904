"""The C++ kernels of ``torchqx::causal_conv1d`` and its update, built at the first call; elsewhere the formulas run."""

from pathlib import Path

from torchqx.inductor_kernels.causal_conv1d.naive import causal_conv1d_naive, causal_conv1d_update_naive
from torchqx.inductor_kernels.causal_conv1d.schema import LIBRARY
from torchqx.inductor_kernels.state_space.build import load_kernel, register


def load() -> None:
    """Build (once per machine) and register the kernels.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_kernel(Path(__file__).parent, "conv.h", "op.cpp")


register(LIBRARY, "causal_conv1d", load, causal_conv1d_naive)
register(LIBRARY, "causal_conv1d_update", load, causal_conv1d_update_naive)
