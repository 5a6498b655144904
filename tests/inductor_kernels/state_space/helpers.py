"""What the tests of the state-space operators share: float64 twins, codes, and an error bound."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Operands = dict[str, Any]


def double(operands: Operands) -> Operands:
    """Float operands in float64; codes and scales as they are."""
    return {name: value.double() if isinstance(value, Tensor) and value.is_floating_point() and "scale" not in name
            else value for name, value in operands.items()}


def channels_last(*shape: int) -> Tensor:
    """Random [B, D, L] whose channels are neighbours in memory."""
    return torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2)


def turn(operands: Operands) -> Operands:
    """The same values with the second and the last dimension swapped in memory."""
    return {name: value.transpose(1, -1).contiguous().transpose(1, -1) if isinstance(value, Tensor) and value.dim() > 1
            else value for name, value in operands.items()}


def trainable(operands: Operands) -> Operands:
    """All operands require gradients."""
    return {name: value.requires_grad_() if isinstance(value, Tensor) else value for name, value in operands.items()}


def codes(shape: tuple[int, ...], dtype: torch.dtype = torch.int8) -> Tensor:
    """Random codes of a symmetric quantizer: -127 to 127, or 1 to 255."""
    return (torch.randint(-127, 128, shape) + (128 if dtype == torch.uint8 else 0)).to(dtype)


def poison(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Free blocks of NaN: the allocator hands them to the next tensors of these sizes."""
    for shape in shapes:
        torch.full(shape, float("nan"), dtype=dtype)


def assert_as_exact(result: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The kernel's error is at most a few times that of the float32 formula, or of one rounding."""
    assert result.shape == exact.shape
    size = exact.abs().max()
    error, usual = (result - exact).abs().max(), (plain - exact).abs().max()
    assert error <= torch.maximum(6 * usual, 3e-6 * size), f"error {error:.2e}, float32 {usual:.2e}, of {size:.2e}"


def with_threads(count: int, compute: Callable[[], Any]) -> Any:
    """``compute()`` while torch works with ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return compute()
    finally:
        torch.set_num_threads(before)
