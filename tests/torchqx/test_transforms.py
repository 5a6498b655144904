"""Transforms, and chains of them: exact in float64, undone by their inverses, deaf to autocast."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torchqx.fx_passes.prove import TOLERANCE, relative_error
from torchqx.rotations import Hadamard, choose
from torchqx.transforms import Chain, NormDivisor, OutputRotation, Rotation, ShiftScale, rotated

COLUMNS = [12, 63, 64, 100, 576]


def vector(seed: int, k: int, least: float = 0.01) -> Tensor:
    return torch.rand(k, generator=torch.Generator().manual_seed(seed)) * 9 + least


@st.composite
def chains(draw) -> tuple[Chain, int, int]:
    """A chain with any of its parts, the length of its rows, and a seed."""
    k, seed = draw(st.sampled_from(COLUMNS)), draw(st.integers(0, 2**20))
    rotation = choose(k, draw(st.sampled_from([None, 0, 7]))) if draw(st.booleans()) else None
    norm = -vector(seed, k) if draw(st.booleans()) else None
    shift = vector(seed + 1, k) * 100 if draw(st.booleans()) else None
    scale = vector(seed + 2, k) if draw(st.booleans()) else None
    return Chain((*rotated(norm, rotation, k).parts, ShiftScale(shift, scale))), k, seed


@settings(deadline=None, max_examples=60)
@given(chains(), st.booleans(), st.booleans())
def test_the_matmul_stays_in_float64(drawn: tuple, stacked: bool, biased: bool) -> None:
    chain, k, seed = drawn
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, k, generator=random).double()
    weight = torch.randn(*((3,) if stacked else ()), 7, k, generator=random).double()
    bias = torch.randn(weight.shape[:-1], generator=random).double() if biased else None
    moved = chain.bias(weight, bias)
    for e, w in enumerate(weight if stacked else [weight]):
        own = [None if b is None else b[e] if stacked else b for b in (bias, moved)]
        before = torch.nn.functional.linear(x, w, own[0])
        after = torch.nn.functional.linear(chain.activation(x), chain.weight(w), own[1])
        assert relative_error(after, before) < TOLERANCE
    assert relative_error(chain.original(chain.weight(weight)), weight) < TOLERANCE


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([(64, 16), (100, 20), (36, 36)]), st.sampled_from([None, 3]), st.booleans())
def test_a_rotated_result_turns_back(sizes: tuple[int, int], seed: int | None, stacked: bool) -> None:
    n, block = sizes
    output = OutputRotation(Hadamard(block, seed))
    weight = torch.randn(*((2,) if stacked else ()), n, 9).double()
    x, bias = torch.randn(5, 9).double(), torch.randn(n).double()
    before = x @ weight.mT + bias
    rotated_rows = x @ output.weight(weight).mT + output.bias(bias)
    assert relative_error(rotated_rows, before) > 0.1, "it is rotated"
    assert relative_error(output.result(rotated_rows), before) < TOLERANCE
    assert relative_error(output.original(output.weight(weight)), weight) < TOLERANCE


def test_the_order_is_divide_rotate_shift_and_scale() -> None:
    g, z, s = vector(0, 8), vector(1, 8), vector(2, 8)
    x, rotation = torch.randn(3, 8), Hadamard(8, 5)
    chain = Chain((*rotated(g, rotation, 8).parts, ShiftScale(z, s)))
    torch.testing.assert_close(chain.activation(x), ((x / g) @ rotation.matrix(8).float() - z) / s)
    assert chain.names == ["norm weight", "hadamard 8 (seed 5)", "shift", "scale"]


def test_names_say_blocks_and_seed() -> None:
    assert Rotation(Hadamard(576, 0), 576).names == ["hadamard 576 (seed 0)"]
    assert Rotation(Hadamard(4), 12).names == ["hadamard 3 x 4"]
    assert rotated(None, None, 12).parts == Chain().parts == ()
    assert rotated(torch.ones(12), None, 12).names == NormDivisor(scale=torch.ones(12)).names == ["norm weight"]


def test_nothing_changes_nothing() -> None:
    x, weight = torch.randn(2, 5), torch.randn(3, 5)
    assert Chain().activation(x) is x
    assert Chain().weight(weight) is Chain().original(weight) is weight
    assert Chain().bias(weight, None) is None


@pytest.mark.parametrize("turn", [Rotation(Hadamard(64, 0), 64).activation, OutputRotation(Hadamard(64)).result])
def test_autocast_takes_no_precision(turn) -> None:
    x = torch.randn(9, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = turn(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, turn(x))


def test_shapes_without_values() -> None:
    """Dynamo asks so; what is kept of a rotation must not become a tensor without values."""
    rotation = Rotation(Hadamard(20, 12345), 100)
    with FakeTensorMode():
        assert rotation.activation(torch.empty(3, 100, dtype=torch.bfloat16)).shape == (3, 100)
    assert torch.isfinite(rotation.activation(torch.ones(100))).all()
