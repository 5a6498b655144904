"""The Hadamard operators on GPUs, compiled: one Triton kernel with what stands before and after, where Inductor can.

The operators come apart into products of blocks, signs and quantizers in plain torch; a product is a template of
``triton_kernel``. A row's range needs the whole row, so quantizing per token is in the kernel where a block is the row.

| operator | becomes |
|---|---|
| ``hadamard`` | signs · product, or product · signs |
| ``hadamard_quantize_static`` | float32 product, then ``quantize_static`` as its epilogue |
| ``hadamard_quantize_per_token`` | ``hadamard_blocks_per_token``; of several blocks a product, then a reduction |

Not compiled, and where no program can hold the factors of a block, the formula of ``aten`` runs.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch._inductor import decomposition

from torchqx.hadamard_matrices import hadamard_matrix, times_hadamard
from torchqx.inductor_kernels.hadamard.gpu_factors import factors
from torchqx.inductor_kernels.hadamard.schema import LIBRARY
from torchqx.inductor_kernels.int8_linear.quantize import code_dtype, quantize_per_token, quantize_static
from torchqx.made_apart import made_apart

LIBRARY.define("hadamard_factor(int order, Device device) -> Tensor")
LIBRARY.define("hadamard_blocks(Tensor x, Tensor? factor, int block, bool transpose, ScalarType dtype) -> Tensor")
LIBRARY.define(
    "hadamard_blocks_per_token(Tensor x, Tensor? factor, int block, Tensor? smooth, Tensor? shift, int qmin, "
    "int qmax, bool symmetric, float clip_ratio) -> (Tensor, Tensor, Tensor)"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
@made_apart
def _factor(order: int, device: torch.device) -> Tensor:
    return hadamard_matrix(order).to(device)


@torch.library.impl(LIBRARY, "hadamard_factor", "CompositeExplicitAutograd")
def hadamard_factor(order: int, device: torch.device) -> Tensor:
    """The matrix of an order that is no power of two, int8 [order, order], kept on the device: nobody may write it."""
    return _factor(order, device)


@torch.library.register_fake("torchqx::hadamard_factor")
def _(order: int, device: torch.device) -> Tensor:
    return torch.empty(order, order, dtype=torch.int8, device=device)


@torch.library.impl(LIBRARY, "hadamard_blocks", "CompositeExplicitAutograd")
def hadamard_blocks(x: Tensor, factor: Tensor | None, block: int, transpose: bool, dtype: torch.dtype) -> Tensor:
    """Each block of the rows [M, K] times H, or Hᵀ, over sqrt(block), in ``dtype``; ``factor``: the dense one."""
    return times_hadamard(x.float(), block, transpose).to(dtype)


@torch.library.register_fake("torchqx::hadamard_blocks")
def _(x: Tensor, factor: Tensor | None, block: int, transpose: bool, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.impl(LIBRARY, "hadamard_blocks_per_token", "CompositeExplicitAutograd")
def hadamard_blocks_per_token(
    x: Tensor, factor: Tensor | None, block: int, smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int,
    symmetric: bool, clip_ratio: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`hadamard_blocks` of rows of one block [M, block], quantized with one range each."""
    return quantize_per_token(times_hadamard(x.float(), block), smooth, shift, qmin, qmax, symmetric, clip_ratio)


@torch.library.register_fake("torchqx::hadamard_blocks_per_token")
def _(x: Tensor, factor: Tensor | None, block: int, smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int,
      symmetric: bool, clip_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    row = (x.shape[0], 1)
    return (x.new_empty(x.shape, dtype=code_dtype(qmin)), x.new_empty(row, dtype=torch.float32),
            x.new_empty(row, dtype=torch.int32))


def _has_kernel(x: Tensor, block: int) -> bool:
    return x.device.type == "cuda" and x.dtype in DTYPES and factors(block).has_kernel


def _operands(x: Tensor, signs: Tensor | None, block: int) -> tuple[Tensor, Tensor | None]:
    """The rows with their signs, and the dense factor."""
    rows = x.reshape(-1, x.shape[-1])
    first = factors(block).parts[0]
    factor = torch.ops.torchqx.hadamard_factor(first.order, x.device) if first.dense else None
    return rows if signs is None else rows * signs.to(x.dtype), factor


def hadamard(x: Tensor, signs: Tensor | None, block: int, transpose: bool) -> Tensor:
    """What ``torchqx::hadamard`` comes apart into; signs are exact in every dtype."""
    if not _has_kernel(x, block):
        return NotImplemented
    rows, factor = _operands(x, None if transpose else signs, block)
    y = torch.ops.torchqx.hadamard_blocks(rows, factor, block, transpose, x.dtype)
    if transpose and signs is not None:
        y = y * signs.to(x.dtype)
    return y.reshape(x.shape)


def hadamard_quantize_static(
    x: Tensor, signs: Tensor | None, block: int, mul: Tensor, add: Tensor, qmin: int, qmax: int
) -> Tensor:
    """What ``torchqx::hadamard_quantize_static`` comes apart into."""
    if not _has_kernel(x, block):
        return NotImplemented
    y = torch.ops.torchqx.hadamard_blocks(*_operands(x, signs, block), block, False, torch.float32)
    return quantize_static(y, mul, add, qmin, qmax).reshape(x.shape)


def hadamard_quantize_per_token(
    x: Tensor, signs: Tensor | None, block: int, smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int,
    symmetric: bool, clip_ratio: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``torchqx::hadamard_quantize_per_token`` comes apart into."""
    if not _has_kernel(x, block):
        return NotImplemented
    rows, factor = _operands(x, signs, block)
    if block == x.shape[-1] and factors(block).holds_row:
        quantized = torch.ops.torchqx.hadamard_blocks_per_token(rows, factor, block, smooth, shift, qmin, qmax,
                                                                symmetric, clip_ratio)
    else:
        y = torch.ops.torchqx.hadamard_blocks(rows, factor, block, False, torch.float32)
        quantized = quantize_per_token(y, smooth, shift, qmin, qmax, symmetric, clip_ratio)
    codes, scale, zero = quantized
    row = (*x.shape[:-1], 1)
    return codes.reshape(x.shape), scale.reshape(row), zero.reshape(row)


def _register() -> None:
    ops: Any = torch.ops.torchqx
    for decomposed in (hadamard, hadamard_quantize_static, hadamard_quantize_per_token):
        decomposition.register_decomposition([getattr(ops, decomposed.__name__).default])(decomposed)
    decomposition.fast_random_decomps.cache_clear()  # a copy of the table, if something was compiled before


_register()
