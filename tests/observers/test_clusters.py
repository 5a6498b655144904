"""Channels that share a limit: the fewest bits lost, whatever their order."""

from itertools import combinations
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchqx.observers.clusters import shared_limits

SIZES = st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=9)
COUNTS = st.integers(1, 10)


def lost(limits: Tensor, shared: Tensor) -> float:
    return float((shared.double() / limits.double()).log2().sum())


def of_parts(limits: Tensor, ends: tuple[int, ...]) -> Tensor:
    """Limits of the parts of the sorted ``limits`` that end before ``ends``."""
    parts = limits.sort().values.tensor_split(ends)
    return torch.cat([part[-1:].expand(len(part)) for part in parts])


@settings(deadline=None, max_examples=200)
@given(SIZES, COUNTS)
def test_no_partition_loses_fewer_bits(sizes: list[float], count: int):
    limits = torch.tensor(sizes)
    found = shared_limits(limits, count)
    assert (found >= limits).all()
    assert len(found.unique()) <= count
    ends = combinations(range(1, len(sizes)), min(count, len(sizes)) - 1)
    best = min(lost(limits.sort().values, of_parts(limits, e)) for e in ends)
    assert lost(limits, found) == pytest.approx(best, abs=1e-6)


@settings(deadline=None)
@given(SIZES, COUNTS, st.randoms())
def test_the_order_of_the_channels_does_not_matter(sizes: list[float], count: int, random: Random):
    order = list(range(len(sizes)))
    random.shuffle(order)
    limits = torch.tensor(sizes)
    torch.testing.assert_close(lost(limits[order], shared_limits(limits[order], count)),
                               lost(limits, shared_limits(limits, count)))
    assert torch.equal(shared_limits(limits[order], count), shared_limits(limits, count)[order])


@settings(deadline=None)
@given(SIZES)
def test_a_cluster_each_changes_nothing(sizes: list[float]):
    limits = torch.tensor(sizes)
    assert torch.equal(shared_limits(limits, len(sizes)), limits)
    assert torch.equal(shared_limits(limits, 1), limits.amax().expand_as(limits))


def test_many_channels():
    """Better than equal parts, and linear: two thousand channels take a moment."""
    limits = torch.rand(2000).pow(6)
    equal = of_parts(limits, tuple(range(125, 2000, 125)))
    assert lost(limits, shared_limits(limits, 16)) < 0.8 * lost(limits.sort().values, equal)


def test_channels_without_values():
    limits = torch.tensor([0.0, 3.0, 0.0, 2.0])
    assert shared_limits(limits, 2).tolist() == [0, 3, 0, 3]
    assert shared_limits(torch.zeros(3), 2).tolist() == [0, 0, 0]
