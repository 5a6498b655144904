"""Outputs whose memory held NaN before."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def poisoned() -> Callable[[tuple[int, ...], torch.dtype], None]:
    """Frees a block full of NaN (255, for codes) of the given size: the allocator hands it to the next tensor."""

    def poison(shape: tuple[int, ...], dtype: torch.dtype) -> None:
        torch.full(shape, float("nan") if dtype.is_floating_point else 255, dtype=dtype)

    return poison
