"""The C++ kernel of ``torchqx::quantize_norm``: where it runs, and how it gets built."""

from pathlib import Path

import torch
from torch import Tensor

from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.inductor_kernels.norms import layer_norm
from torchqx.inductor_kernels.quantize_norm.schema import LIBRARY

_ROTATION = Path(__file__).parents[1] / "hadamard"  # whose vectors and quantizing sink the kernel shares
SOURCES = (*(_ROTATION / name for name in ("vectors.h", "sinks.h", "operands.h")), Path(__file__).with_name("op.cpp"))
FLAGS = ("-ffp-contract=fast",)


def is_supported(device: torch.device) -> bool:
    """Whether the C++ kernel can be built for it; any CPU runs it."""
    return device.type == "cpu" and has_compiler()


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_operators(SOURCES, FLAGS)


def quantize_norm_aten(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mul: Tensor, add: Tensor, qmin: int,
    qmax: int, keep: bool,
) -> tuple[Tensor, Tensor]:
    """``torchqx::quantize_norm`` with the functions of torch, on any device."""
    y = layer_norm(x, weight, bias, eps, torch.float32)
    return y.to(x.dtype) if keep else x.new_empty(0), quantize_static(y, mul, add, qmin, qmax)


first_call = build_at_first_call(LIBRARY, "quantize_norm", lambda x, *_: is_supported(x.device), load,
                                 quantize_norm_aten)
