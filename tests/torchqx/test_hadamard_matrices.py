"""Generated matrices: exactly orthogonal, in the agreed order of factors, wherever a model needs one."""

import pytest
import torch

from torchqx.errors import ShapeError
from torchqx.hadamard_matrices import (
    base_matrix,
    factors_of,
    hadamard_matrix,
    is_known,
    known_orders,
    split,
    sylvester,
    times_hadamard,
)

ORDERS = known_orders(512)


@pytest.mark.parametrize("order", ORDERS)
def test_orthogonal_and_plus_minus_one(order):
    h = hadamard_matrix(order)
    assert h.dtype == torch.int8
    assert torch.equal(h.abs(), torch.ones_like(h))
    wide = h.float()  # sums of at most 512 ones are exact
    assert torch.equal(wide @ wide.T, order * torch.eye(order))


def test_orders_below_200_have_only_the_known_gap():
    missing = [n for n in range(4, 200, 4) if n not in ORDERS]
    assert missing in ([188], [156, 188])
    assert {1, 2, 12, 20, 28, 36, 52, 76, 92, 100, 116, 172} <= set(ORDERS)


@pytest.mark.parametrize("order", [576, 768, 960, 1536, 1728, 2048, 2304, 3072, 4096, 5120, 6912, 8960, 11008, 14336])
def test_hidden_sizes_of_models_are_whole(order):
    base, power = factors_of(order)
    assert base * power == order
    assert power == 2 ** (power.bit_length() - 1)


@pytest.mark.parametrize(("order", "expected"), [(1, (1, 1)), (64, (1, 64)), (24, (12, 2)), (1728, (108, 16)),
                                                 (63, None), (6, None), (11008, (172, 64))])
def test_smallest_base_first(order, expected):
    assert split(order) == expected
    assert is_known(order) == (expected is not None)


def test_base_stands_on_the_left():
    h, base, s = hadamard_matrix(48), base_matrix(12), sylvester(4)
    for a, b, i, j in ((3, 7, 2, 1), (11, 0, 3, 3), (5, 5, 0, 2)):
        assert h[a * 4 + i, b * 4 + j] == base[a, b] * s[i, j]


def test_made_once():
    assert hadamard_matrix(36) is hadamard_matrix(36)
    assert base_matrix(28) is base_matrix(28)


@pytest.mark.parametrize("order", [0, -4, 3, 63, 188])
def test_unknown_order(order):
    assert not is_known(order)
    with pytest.raises(ShapeError, match="known_orders"):
        hadamard_matrix(order)


@pytest.mark.parametrize("block", [1, 2, 12, 128, 240, 256, 576])
@pytest.mark.parametrize("transpose", [False, True])
def test_factor_by_factor_is_the_whole_matrix(block, transpose):
    x = torch.randn(2, 3, 2 * block, dtype=torch.float64)
    h = hadamard_matrix(block).double() / block**0.5
    expected = (x.unflatten(-1, (2, block)) @ (h.T if transpose else h)).flatten(-2)
    torch.testing.assert_close(times_hadamard(x, block, transpose), expected, rtol=1e-12, atol=1e-12)
