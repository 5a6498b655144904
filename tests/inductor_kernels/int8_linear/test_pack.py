"""The packed weight: what it holds, and that it can be had back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.inductor_kernels.int8_linear import column_sums, pack_int8_weight, unpack_int8_weight


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), k=st.integers(1, 130))
def test_round_trip_and_zero_padding(n, k):
    q = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    packed = pack_int8_weight(q)
    assert packed.shape == (-(-n // 64), -(-k // 4), 64, 4)
    assert packed.is_contiguous()
    assert torch.equal(unpack_int8_weight(packed, n, k), q)
    assert packed.long().abs().sum() == q.long().abs().sum()
    assert packed[(n - 1) // 64, (k - 1) // 4, (n - 1) % 64, (k - 1) % 4] == q[-1, -1]


def test_column_sums_of_stacked_weights():
    q = torch.full((2, 3, 1000), -128, dtype=torch.int8)
    assert torch.equal(column_sums(q), torch.full((2, 3), -128000, dtype=torch.int32))
