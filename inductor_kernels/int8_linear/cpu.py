"""The C++ kernel of ``torchqx::int8_linear``: where it runs, and how it gets built."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten
from torchqx.inductor_kernels.int8_linear.pack import unpack_int8_weight
from torchqx.inductor_kernels.int8_linear.schema import GATE, LIBRARY

HEADERS = ("activations.h", "epilogue.h", "microkernel.h", "tiles.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in (*HEADERS, "op.cpp"))
FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")


@functools.cache
def is_supported(device: torch.device) -> bool:
    """Whether the C++ kernel can run: a CPU with AVX512-VNNI, and a compiler. Otherwise use the ATen formula."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and has_compiler()


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_operators(SOURCES, FLAGS)


def unpacked_linear(*args: Any) -> Tensor:
    """``torchqx::int8_linear`` with the functions of torch, on any device."""
    x, weight, weight_scale, *rest = args
    parts = weight.chunk(1 if args[GATE:] in ((), (None,)) else 2)
    columns = weight_scale.shape[0] // len(parts)
    qdata = torch.cat([unpack_int8_weight(part, columns, x.shape[-1]) for part in parts])
    return int8_linear_aten(x, qdata, weight_scale, *rest)


first_call = build_at_first_call(LIBRARY, "int8_linear", lambda x, *_: is_supported(x.device), load, unpacked_linear)
