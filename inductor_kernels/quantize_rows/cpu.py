"""The C++ kernel of ``torchqx::quantize_rows``: where it runs, and how it gets built.

It ends as the rotation that quantizes does, whose headers it shares; without the butterflies it is built in seconds.
"""

from pathlib import Path

import torch

from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token
from torchqx.inductor_kernels.quantize_rows.schema import LIBRARY

_ROTATION = Path(__file__).parents[1] / "hadamard"
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


first_call = build_at_first_call(LIBRARY, "quantize_rows", lambda x, *_: is_supported(x.device), load,
                                 quantize_per_token)
