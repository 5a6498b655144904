"""The growing histogram: exact whatever the order, right quantiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.observers.bins import Bins

batches = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=20), min_size=1, max_size=5)


def counted(parts: list[list[float]], number: int = 64) -> Bins:
    bins = Bins(number)
    for part in parts:
        values = torch.tensor(part)
        bins.add(values, float(values.abs().max()))
    return bins


@settings(max_examples=60, deadline=None)
@given(batches)
def test_counts_do_not_depend_on_order_or_batches(parts):
    one = counted([[v for part in parts for v in part]])
    for other in (counted(parts), counted(parts[::-1])):
        assert other.exponent == one.exponent
        assert torch.equal(other.counts, one.counts)


@settings(max_examples=60, deadline=None)
@given(batches, batches)
def test_merging_is_counting_everything(first, second):
    merged = counted(first)
    merged.merge(counted(second))
    assert torch.equal(merged.counts, counted(first + second).counts)


@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.999, 1.0])
def test_quantiles_are_right_to_one_bin(q):
    torch.manual_seed(0)
    values = torch.randn(10_000) * 3 + 1
    bins = counted([values.tolist()], number=4096)
    width = 2.0 ** int(bins.exponent)
    assert abs(float(bins.quantile(q)) - float(values.quantile(q))) <= 2 * width


def test_zeros_then_huge_values():
    bins = counted([[0.0, 0.0], [3e38]])
    assert int(bins.counts.sum()) == 3
    centres, counts = bins.occupied()
    assert counts.tolist() == [2, 1]
    assert centres[0] < 1e37
