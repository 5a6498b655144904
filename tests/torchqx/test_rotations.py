"""Rotations are orthogonal, undone by their transpose, and the same in every process."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.errors import ConfigError, ShapeError
from torchqx.hadamard_matrices import is_known
from torchqx.rotations import Hadamard, choose


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 400), seed=st.none() | st.integers(0, 99), rows=st.integers(0, 4))
def test_inverse_and_length(k, seed, rows):
    rotation = choose(k, seed)
    x = torch.randn(rows, k, dtype=torch.float64)
    y = rotation.apply(x)
    torch.testing.assert_close(rotation.apply_transpose(y), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 3000))
def test_chooses_the_largest_block(k):
    block = choose(k).block
    assert k % block == 0
    assert not any(k % larger == 0 and is_known(larger) for larger in range(block + 1, k + 1))


@pytest.mark.parametrize(("k", "words"), [
    (576, "hadamard 576"), (63, "hadamard 63 x 1"), (1000, "hadamard 1000"), (376, "hadamard 47 x 8"),
    (11008, "hadamard 11008"), (36, "hadamard 36"),
])
def test_words(k, words):
    assert choose(k).words(k) == words


def test_matrix_is_what_apply_multiplies_by():
    rotation, x = Hadamard(12, seed=5), torch.randn(2, 3, 24, dtype=torch.float64)
    r = rotation.matrix(24)
    torch.testing.assert_close(rotation.apply(x), x @ r)
    torch.testing.assert_close(rotation.apply_transpose(x), x @ r.T)
    torch.testing.assert_close(r @ r.T, torch.eye(24, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keeps_the_dtype(dtype):
    x = torch.randn(3, 40).to(dtype)
    y = Hadamard(20, seed=1).apply(x)
    assert y.dtype == dtype
    expected = Hadamard(20, seed=1).apply(x.double())
    assert (y.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_an_outlier_spreads():
    x = torch.zeros(576)
    x[17] = 100
    y = Hadamard(576, seed=0).apply(x)
    torch.testing.assert_close(y.abs(), torch.full((576,), 100 / 24))


def test_signs_depend_on_the_seed_alone():
    first = Hadamard(4, seed=3).signs(64)
    assert set(first.tolist()) == {-1.0, 1.0}
    assert not torch.equal(first, Hadamard(4, seed=4).signs(64))
    assert Hadamard(4).signs(64) is None
    torch.manual_seed(11)
    assert torch.equal(Hadamard(64, seed=3).signs(64), first)
    written = "".join("+" if sign > 0 else "-" for sign in Hadamard(4, seed=3).signs(16))
    assert written == "--++---+++-+++-+"  # saved plans hold the seed, not the signs


def test_json_round_trip():
    rotation = Hadamard(36, seed=7)
    assert Hadamard(**json.loads(json.dumps(rotation.to_json()))) == rotation
    assert hash(rotation) == hash(Hadamard(36, 7))


def test_refuses_unknown_blocks_and_lengths():
    with pytest.raises(ConfigError, match="order 63"):
        Hadamard(63)
    for act in (Hadamard(12).apply, Hadamard(12).apply_transpose, lambda x: Hadamard(12).matrix(x.shape[-1])):
        with pytest.raises(ShapeError, match="blocks of 12"):
            act(torch.randn(2, 20))
