"""Building the C++ kernels: AVX-512 where the machine has it, the compiler's own vectors elsewhere."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators

HEADERS = tuple(Path(__file__).with_name(name)
                for name in ("vectors.h", "exponential.h", "operand.h", "result.h", "state.h"))
FLAGS = ("-ffp-contract=fast",)


@functools.cache
def is_supported(device: torch.device) -> bool:
    """Whether the C++ kernels can run: on a CPU, with a compiler. Otherwise the formula in torch runs."""
    return device.type == "cpu" and has_compiler()


def load_kernel(folder: Path, *names: str) -> None:
    """Build (once per machine) and register the sources ``names`` of a kernel's ``folder``.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_operators((*HEADERS, *(folder / name for name in names)), FLAGS)


def register(library: torch.library.Library, name: str, load: Callable[[], None], naive: Callable[..., Any]) -> None:
    """``torchqx::name``, built at the first call, and its formula as ``torchqx::name_naive``."""
    build_at_first_call(library, name, lambda first, *_: is_supported(first.device), load, naive)
    library.impl(f"{name}_naive", naive, "CompositeExplicitAutograd")
