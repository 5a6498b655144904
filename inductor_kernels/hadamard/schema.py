"""``torchqx::hadamard`` and the two that quantize its result: schemas, shapes for tracing, gradients.

| op | result |
|---|---|
| ``hadamard(x, signs, block, transpose)`` | x R, or x Rᵀ |
| ``hadamard_quantize_static(x, signs, block, mul, add, qmin, qmax)`` | clamp(round(x R · mul + add)) |
| ``hadamard_quantize_per_token(x, signs, block, smooth, shift, qmin, qmax, symmetric, clip_ratio=1)`` | see aten |

    x R = ((x · signs) as [..., K/block, block]) @ (H_base ⊗ Sylvester) / sqrt(block)

``signs`` is float32 [K] of +-1, or None; ``block`` divides K. Codes are uint8, or int8 where
``qmin`` is negative. ``smooth`` multiplies, as ``inv_smooth`` does in ``int8_linear.quantize.quantize_per_token``;
``clip_ratio`` is the share of a row's range that the codes cover.
"""

from typing import Any

import torch
from torch import Tensor

from torchqx.errors import ShapeError
from torchqx.hadamard_matrices import is_known
from torchqx.inductor_kernels.int8_linear.quantize import code_dtype, per_token_results

LIBRARY = torch.library.Library("torchqx", "FRAGMENT")
LIBRARY.define("hadamard(Tensor x, Tensor? signs, int block, bool transpose) -> Tensor")
LIBRARY.define(
    "hadamard_quantize_static(Tensor x, Tensor? signs, int block, Tensor mul, Tensor add, int qmin, int qmax) -> Tensor"
)
LIBRARY.define(
    "hadamard_quantize_per_token(Tensor x, Tensor? signs, int block, Tensor? smooth, Tensor? shift, int qmin, "
    "int qmax, bool symmetric, float clip_ratio=1.0) -> (Tensor, Tensor, Tensor)"
)
# What the C++ kernels ask of Python: the formula, for float64; once, the orders of a block's bases, and their matrix.
LIBRARY.define("hadamard_aten(Tensor x, Tensor? signs, int block, bool transpose) -> Tensor")
LIBRARY.define("hadamard_bases(Tensor like, int block) -> Tensor")
LIBRARY.define("hadamard_base(Tensor like, int block) -> Tensor")


def check(x: Tensor, signs: Tensor | None, block: int) -> None:
    """What all three ask of their operands.

    Raises:
        ShapeError: ``block`` is not a known order or does not divide the rows, or ``signs`` has another length.
    """
    if not is_known(block) or x.dim() == 0 or x.shape[-1] % block:
        raise ShapeError(f"rows of shape {tuple(x.shape)} do not split into Hadamard blocks of {block}",
                         where="hadamard", remedy="take the block from torchqx.rotations.choose(K).")
    if signs is not None and signs.shape != x.shape[-1:]:
        raise ShapeError(f"signs of shape {tuple(signs.shape)} for rows of {x.shape[-1]}", where="hadamard",
                         remedy="take the signs from Hadamard.signs(K).")


@torch.library.register_fake("torchqx::hadamard")
def hadamard_fake(x: Tensor, signs: Tensor | None, block: int, transpose: bool) -> Tensor:
    check(x, signs, block)
    return x.new_empty(x.shape)


@torch.library.register_fake("torchqx::hadamard_quantize_static")
def hadamard_quantize_static_fake(
    x: Tensor, signs: Tensor | None, block: int, mul: Tensor, add: Tensor, qmin: int, qmax: int
) -> Tensor:
    check(x, signs, block)
    return x.new_empty(x.shape, dtype=code_dtype(qmin))


@torch.library.register_fake("torchqx::hadamard_quantize_per_token")
def hadamard_quantize_per_token_fake(
    x: Tensor, signs: Tensor | None, block: int, smooth: Tensor | None, shift: Tensor | None, qmin: int, qmax: int,
    symmetric: bool, clip_ratio: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    check(x, signs, block)
    return per_token_results(x, qmin)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, signs, ctx.block, ctx.transpose = inputs
    ctx.save_for_backward(signs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (signs,) = ctx.saved_tensors
    return torch.ops.torchqx.hadamard(gradient, signs, ctx.block, not ctx.transpose), None, None, None


torch.library.register_autograd("torchqx::hadamard", _backward, setup_context=_remember)
