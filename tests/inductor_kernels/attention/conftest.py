"""Random operands of attention, and outputs whose memory held NaN before."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def operands() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """q [B, H, S, D] and k, v [B, Hk, T, D] as views of one wide matmul's result where S == T, as models have them."""

    def make(batch: int, heads: int, kv_heads: int, rows: int, keys: int, width: int,
             dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        if rows != keys:
            sizes = (heads, rows), (kv_heads, keys), (kv_heads, keys)
            return tuple(torch.randn(batch, h, n, width).to(dtype) for h, n in sizes)
        wide = torch.randn(batch, rows, (heads + 2 * kv_heads) * width).to(dtype)
        parts = wide.split([heads * width, kv_heads * width, kv_heads * width], -1)
        return tuple(part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)

    return make


@pytest.fixture
def poisoned() -> Callable[[Tensor], None]:
    """Frees a NaN-filled block of the size of the given tensor: the allocator hands it to the next one."""

    def poison(like: Tensor) -> None:
        torch.full(like.shape, float("nan"), dtype=like.dtype)

    return poison
