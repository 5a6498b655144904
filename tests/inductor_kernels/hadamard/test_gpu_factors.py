"""Factors for tensor cores: their product is the matrix, and a program can hold them."""

import functools

import pytest
import torch

from torchqx.hadamard_matrices import hadamard_matrix, known_orders
from torchqx.inductor_kernels.hadamard.gpu_factors import SMALLEST, WIDEST, factors
from torchqx.rotations import choose


@pytest.mark.parametrize("block", [1, 2, 8, 12, 16, 32, 100, 192, 256, 576, 768, 1024, 1536])
def test_their_product_is_the_matrix(block):
    matrices = [hadamard_matrix(f.order) for f in factors(block).parts]
    assert torch.equal(functools.reduce(torch.kron, matrices), hadamard_matrix(block))


def test_only_the_first_is_padded_or_dense():
    for block in known_orders(2048):
        first, *others = factors(block).parts
        assert first.size >= max(SMALLEST, first.order)
        assert all(f.size == f.order >= SMALLEST and not f.dense for f in others)


@pytest.mark.parametrize("k", [64, 576, 768, 960, 1536, 1728, 2048, 2304, 3072, 4096, 5120, 6912, 8960, 11008, 14336])
def test_sizes_of_real_models_have_a_kernel(k):
    by = factors(choose(k).block)
    assert by.holds_row
    assert by.width <= WIDEST


def test_a_large_matrix_alone_has_none():
    assert not factors(1000).has_kernel  # base 500 and only one factor of two
    assert not factors(65536).has_kernel
    assert factors(11008).sliced
    assert factors(32768).has_kernel
    assert not factors(32768).holds_row
