"""The two outermost values of each channel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchqx.observers import ChannelMinMaxObserver
from torchqx.observers.minmax import largest_two


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_largest_two_is_topk(count: int, columns: int, seed: int) -> None:
    """Also where both are in one group of rows, and with ties."""
    rows = torch.randint(-9, 9, (count, columns), generator=torch.Generator().manual_seed(seed)).float()
    if count > 1:
        assert torch.equal(largest_two(rows), rows.topk(2, dim=0).values)
    else:
        assert torch.equal(largest_two(rows), torch.cat((rows, torch.full_like(rows, -torch.inf))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_over_batches_and_observers(dtype: torch.dtype) -> None:
    x = torch.randn(100, 7).to(dtype)
    first, second = ChannelMinMaxObserver(), ChannelMinMaxObserver()
    for part in x[:63].split(9):
        first(part)
    second(x[63:])
    first.merge(second)
    low, high = first.channel_extremes()
    assert torch.equal(low, x.float().topk(2, dim=0, largest=False).values)
    assert torch.equal(high, x.float().topk(2, dim=0).values)


def test_a_single_row_has_no_next() -> None:
    observer = ChannelMinMaxObserver()
    observer(torch.tensor([[1.0, -2.0]]))
    low, high = observer.channel_extremes()
    assert low.tolist() == [[1.0, -2.0], [torch.inf, torch.inf]]
    assert high.tolist() == [[1.0, -2.0], [-torch.inf, -torch.inf]]
