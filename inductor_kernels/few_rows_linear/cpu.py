"""The C++ kernel of ``torchqx::few_rows_linear``: where it runs, and how it gets built."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators
from torchqx.inductor_kernels.few_rows_linear.schema import DTYPES, LIBRARY

SOURCES = tuple(Path(__file__).with_name(name) for name in ("element.h", "tile.h", "op.cpp"))
FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")


@functools.cache
def is_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the C++ kernel can run: float32 or bfloat16 on a CPU with AVX512, and a compiler."""
    return device.type == "cpu" and dtype in DTYPES and torch.cpu._is_avx512_supported() and has_compiler()


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_operators(SOURCES, FLAGS)


first_call = build_at_first_call(LIBRARY, "few_rows_linear", lambda x, *_: is_supported(x.device, x.dtype), load,
                                 F.linear)
