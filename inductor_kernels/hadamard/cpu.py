"""The C++ kernels of the Hadamard operators: where they run, how they get built, and what runs elsewhere."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from torchqx.hadamard_matrices import base_matrix, bases_of, factors_of
from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators
from torchqx.inductor_kernels.hadamard import aten
from torchqx.inductor_kernels.hadamard.schema import LIBRARY, check

SOURCES = tuple(Path(__file__).with_name(name)
                for name in ("vectors.h", "butterflies.h", "passes.h", "base.h", "small_base.h", "circulants.h",
                             "sinks.h", "operands.h", "rows.h", "op.cpp"))
COMPILED_BASES = (12, 20, 28, 36, 60)  # their signs are constants of small_base.h
CIRCULANT_BASES = (92, 116, 172)  # and of circulants.h


def _rows(base: int) -> str:
    """The rows of a base matrix as numbers: bit b is set where column b has -1."""
    return ",".join(hex(sum(1 << b for b, sign in enumerate(row) if sign < 0)) for row in base_matrix(base).tolist())


def _circulants(base: int) -> str:
    """The signs of four by four circulants as numbers, one per distance: bit 4 c + r where block (c, r) has -1."""
    n = base // 4
    firsts = base_matrix(base)[::n].reshape(16, n)
    return ",".join(hex(sum(1 << b for b, sign in enumerate(at) if sign < 0)) for at in firsts.T.tolist())


FLAGS = ("-ffp-contract=fast",  # multiply-adds are what half of the butterflies run on
         *(f"-DTORCHQX_BASE_{base}={_rows(base)}" for base in COMPILED_BASES),
         *(f"-DTORCHQX_CIRCULANTS_{base}={_circulants(base)}" for base in CIRCULANT_BASES))


@functools.cache
def is_supported() -> bool:
    """Whether the C++ kernels can be built here; any CPU runs them."""
    return has_compiler()


def load() -> None:
    """Build (once per machine) and register the kernels.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_operators(SOURCES, FLAGS)


def _bases(like: Tensor, block: int) -> Tensor:
    return torch.tensor(bases_of(factors_of(block)[0]), dtype=torch.int64)


def _base(like: Tensor, block: int) -> Tensor:
    return base_matrix(factors_of(block)[0])


def _runs(x: Tensor, signs: Tensor | None, block: int, *_: object) -> bool:
    """Whether the C++ kernel does, for operands that fit together."""
    check(x, signs, block)
    return x.device.type == "cpu" and is_supported()


build_at_first_call(LIBRARY, "hadamard", _runs, load, aten.hadamard_aten)
build_at_first_call(LIBRARY, "hadamard_quantize_static", _runs, load, aten.hadamard_quantize_static_aten)
build_at_first_call(LIBRARY, "hadamard_quantize_per_token", _runs, load, aten.hadamard_quantize_per_token_aten)
LIBRARY.impl("hadamard_aten", aten.hadamard_aten, "CompositeExplicitAutograd")
LIBRARY.impl("hadamard_bases", _bases, "CompositeExplicitAutograd")
LIBRARY.impl("hadamard_base", _base, "CompositeExplicitAutograd")
