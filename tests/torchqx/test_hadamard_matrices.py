"""Generated matrices: exactly orthogonal, in the agreed order of factors, wherever a model needs one."""

import pytest
import torch

from torchqx.errors import ShapeError
from torchqx.hadamard_matrices import (
    base_matrix,
    bases_of,
    factors_of,
    hadamard_matrix,
    is_known,
    split,
    sylvester,
    times_hadamard,
)
from torchqx.rotations import Hadamard, choose

ORDERS = [n for n in range(1, 513) if is_known(n)]


@pytest.mark.parametrize("order", ORDERS)
def test_orthogonal_and_plus_minus_one(order):
    h = hadamard_matrix(order)
    assert h.dtype == torch.int8
    assert torch.equal(h.abs(), torch.ones_like(h))
    wide = h.float()  # sums of at most 512 ones are exact
    assert torch.equal(wide @ wide.T, order * torch.eye(order))


def test_orders_below_200_have_only_the_known_gap():
    missing = [n for n in range(4, 200, 4) if n not in ORDERS]
    assert missing == [188]
    assert {1, 2, 12, 20, 28, 36, 52, 76, 92, 100, 116, 156, 172} <= set(ORDERS)


def test_a_length_without_a_matrix_comes_in_blocks():
    assert choose(188 * 16) == Hadamard(64)


@pytest.mark.parametrize("order", [576, 768, 960, 1536, 1728, 2048, 2304, 3072, 4096, 5120, 6912, 8960, 11008, 14336])
def test_hidden_sizes_of_models_are_whole(order):
    base, power = factors_of(order)
    assert base * power == order
    assert power == 2 ** (power.bit_length() - 1)


@pytest.mark.parametrize(("order", "expected"), [(1, (1, 1)), (64, (1, 64)), (24, (12, 2)), (1728, (108, 16)),
                                                 (63, None), (6, None), (11008, (172, 64)), (960, (60, 16)),
                                                 (6912, (432, 16)), (8960, (560, 16)), (2240, (140, 16))])
def test_smallest_base_first_or_a_product_of_two(order, expected):
    assert split(order) == expected
    assert is_known(order) == (expected is not None)


def test_base_stands_on_the_left():
    h, base, s = hadamard_matrix(48), base_matrix(12), sylvester(4)
    for a, b, i, j in ((3, 7, 2, 1), (11, 0, 3, 3), (5, 5, 0, 2)):
        assert h[a * 4 + i, b * 4 + j] == base[a, b] * s[i, j]


def test_a_product_has_the_outer_factor_first():
    assert (bases_of(1), bases_of(108), bases_of(432)) == ((), (108,), (12, 36))
    assert torch.equal(base_matrix(432), torch.kron(base_matrix(12), base_matrix(36)))


def test_made_once():
    assert hadamard_matrix(36) is hadamard_matrix(36)
    assert base_matrix(28) is base_matrix(28)


@pytest.mark.parametrize("order", [0, -4, 3, 63, 188])
def test_unknown_order(order):
    assert not is_known(order)
    with pytest.raises(ShapeError, match="choose"):
        hadamard_matrix(order)


@pytest.mark.parametrize("block", [1, 2, 12, 128, 240, 256, 576])
@pytest.mark.parametrize("transpose", [False, True])
def test_factor_by_factor_is_the_whole_matrix(block, transpose):
    x = torch.randn(2, 3, 2 * block, dtype=torch.float64)
    h = hadamard_matrix(block).double() / block**0.5
    expected = (x.unflatten(-1, (2, block)) @ (h.T if transpose else h)).flatten(-2)
    torch.testing.assert_close(times_hadamard(x, block, transpose), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
def test_factor_by_factor_with_two_bases(transpose):
    """Three rows of a matrix that would take half a gigabyte."""
    at = torch.tensor([0, 1234, 6911])
    base, power = base_matrix(432), sylvester(16)
    x = torch.nn.functional.one_hot(at, 6912).double()
    rows = [torch.kron((base.T if transpose else base)[i // 16], power[i % 16]) for i in at.tolist()]
    torch.testing.assert_close(times_hadamard(x, 6912, transpose) * 6912**0.5, torch.stack(rows).double())
