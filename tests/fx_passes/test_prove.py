"""Function-preserving transforms are proved; wrong ones are refused."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import torchqx
from tests.fx_passes.rewrite import STATIC, Code, quantized
from torchqx import solve
from torchqx.errors import EquivalenceError
from torchqx.fx_passes.prove import prove_linear, relative_error
from torchqx.rotations import Hadamard, choose
from torchqx.transforms import Chain, Rotation, ShiftScale, rotated


class WrongBias(ShiftScale):
    """A shift whose bias is one in a million off."""

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().bias(weight, bias) * (1 + 1e-6)


class NotUndone(ShiftScale):
    """A scale that the weight does not take."""

    def weight(self, weight: Tensor) -> Tensor:
        return weight


@given(st.integers(0, 2**31), st.sampled_from([(5, 63), (3, 7, 20)]))
def test_shift_and_scale_hold(seed: int, shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(seed)
    k = shape[-1]
    shift = torch.randn(k, generator=random) * 100
    scale = torch.rand(k, generator=random) * 50 + 0.01
    rows, weight = torch.randn(11, k, generator=random), torch.randn(shape, generator=random)
    prove_linear("site", rows, weight, ShiftScale(shift, scale))


@pytest.mark.parametrize("wrong", [WrongBias, NotUndone])
def test_a_wrong_transform_is_refused(wrong: type) -> None:
    transform = wrong(torch.rand(16) + 0.5, torch.rand(16) + 0.5)
    with pytest.raises(EquivalenceError, match=r"block\.up: .*float64.*Remedy"):
        prove_linear("block.up", torch.randn(9, 16), torch.randn(5, 16), transform)


@given(st.integers(0, 2**31), st.sampled_from([(8, 100), (3, 12, 24)]), st.booleans())
def test_rotations_hold(seed: int, shape: tuple[int, ...], shifted: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    k = shape[-1]
    norm, shift = torch.rand(k, generator=random) + 0.01, torch.randn(k, generator=random) if shifted else None
    chain = Chain((*rotated(norm, choose(k, seed), k).parts, ShiftScale(shift)))
    rows, weight = torch.randn(11, k, generator=random), torch.randn(shape, generator=random)
    prove_linear("site", rows, weight, chain, Hadamard(4, seed))


def test_a_wrong_rotation_is_refused() -> None:
    class Stays(Rotation):
        def weight(self, weight: Tensor) -> Tensor:
            return weight

    with pytest.raises(EquivalenceError):
        prove_linear("site", torch.randn(9, 16), torch.randn(4, 16), Chain((Stays(Hadamard(16), 16),)), Hadamard(4))


def test_nan_is_refused() -> None:
    with pytest.raises(EquivalenceError):
        prove_linear("site", torch.randn(9, 16), torch.randn(5, 16), ShiftScale(scale=torch.zeros(16)))


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_error(torch.ones(3), torch.zeros(3)) == 1


def test_every_weight_of_a_solve_is_proved() -> None:
    layers = [nn.Linear(16, 16) for _ in range(3)]
    with patch.object(solve, "prove_linear", wraps=prove_linear) as proof:
        quantized(Code(lambda x, a, b, c: c(a(x) + b(x)), *layers), STATIC, torch.randn(9, 16))
    assert sorted(call.args[0] for call in proof.call_args_list) == [f"layers.{i}:linear:0" for i in range(3)]
    assert all(call.args[3] for call in proof.call_args_list), "with its transforms"


def test_a_site_without_proof_stays_float_and_the_report_says_so() -> None:
    def refuse(site, *_):
        if "layers.0" in site:
            raise EquivalenceError("the transformed matmul differs", where=site, remedy="exclude it.")

    x = torch.randn(9, 16)
    with patch.object(solve, "prove_linear", refuse):
        model = quantized(Code(lambda x, a, b: b(a(x).relu()), nn.Linear(16, 16), nn.Linear(16, 16)), STATIC, x)
    first, second = (torchqx.explain(model)[f"layers.{i}:linear:0"] for i in range(2))
    assert (first.status, second.status) == ("float", "quantized")
    assert "differs" in first.reason
    assert first.bytes_after == first.bytes_before
