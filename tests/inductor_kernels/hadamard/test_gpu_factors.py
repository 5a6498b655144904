"""Factors for tensor cores: their product is the matrix, and a program can hold them."""

import functools

import pytest
import torch

from torchqx.hadamard_matrices import hadamard_matrix, is_known
from torchqx.inductor_kernels.hadamard.gpu_factors import ROOMY, SMALLEST, WIDEST, factors
from torchqx.inductor_kernels.hadamard.gpu_lowering import tiles
from torchqx.rotations import choose


@pytest.mark.parametrize("block", [1, 2, 8, 12, 16, 32, 96, 100, 128, 192, 256, 576, 768, 1024, 1536])
def test_their_product_is_the_matrix(block):
    matrices = [hadamard_matrix(f.order) for f in factors(block).parts]
    assert torch.equal(functools.reduce(torch.kron, matrices), hadamard_matrix(block))


def test_only_the_first_is_padded_or_dense():
    for block in filter(is_known, range(1, 2049)):
        first, *others = factors(block).parts
        assert first.size >= max(SMALLEST, first.order)
        assert all(f.size == max(f.order, SMALLEST) and not f.dense for f in others)


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


def test_a_crowded_factor_is_split_where_it_can_be():
    assert [f.order for f in factors(128).parts] == [16, 8]
    assert [f.order for f in factors(96).parts] == [12, 8]
    assert factors(128).width == 128
    assert factors(100).crowded


@pytest.mark.parametrize("rows", [1, 15, 30, 2048])
@pytest.mark.parametrize("block", [16, 64, 96, 128, 100, 576, 768, 1536, 1728, 4096, 6912, 14336])
def test_no_warp_of_several_holds_all_rows_of_a_product(block, rows):
    """They would not have the registers; 16 rows, the fewest, are as many as a crowded product may have there."""
    by = factors(block)
    for tile in tiles(by, rows):
        assert tile.width == by.width
        for factor in by.parts:
            held = tile.blocks * tile.width // factor.size
            assert held >= SMALLEST
            assert tile.warps == 1 or held >= min(factor.size, ROOMY) or (by.crowded and held == SMALLEST)
