"""Cached tensors are ordinary ones, whatever mode the first caller was in."""

import contextlib
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torchqx.errors import ShapeError
from torchqx.hadamard_matrices import base_matrix, hadamard_matrix
from torchqx.inductor_kernels.hadamard import gpu
from torchqx.made_apart import made_apart
from torchqx.rotations import Hadamard

MODES = {"fake": FakeTensorMode, "inference": torch.inference_mode, "device": lambda: torch.device("meta"),
         "none": contextlib.nullcontext}
SEEDS = itertools.count(1000)  # nothing else has asked for these


@pytest.fixture(autouse=True)
def nothing_is_known():
    for cached in (hadamard_matrix, base_matrix, gpu._factor):
        cached.cache_clear()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("make", [
    lambda: hadamard_matrix(48), lambda: base_matrix(12), lambda: gpu._factor(12, torch.device("cpu"))],
    ids=["matrix", "base", "factor"])
def test_matrices(make: Callable[[], Tensor], mode: Callable[[], AbstractContextManager]) -> None:
    with mode():
        make()
    h = make()
    assert type(h) is Tensor
    assert h.device.type == "cpu"
    assert not h.is_inference()
    assert torch.equal(h.float() @ h.float().T, len(h) * torch.eye(len(h)))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_signs_take_part_in_gradients(mode: Callable[[], AbstractContextManager]) -> None:
    rotation = Hadamard(12, seed=next(SEEDS))
    with mode(), contextlib.suppress(AssertionError):  # a fake tensor mode lets no other tensors be copied
        rotation.signs(24)
    x = torch.randn(3, 24, requires_grad=True)
    rotation.apply(x).sum().backward()
    torch.testing.assert_close(x.grad, rotation.apply_transpose(torch.ones(3, 24)))


def test_what_it_raises_comes_through() -> None:
    with pytest.raises(ShapeError, match="order 6"):
        made_apart(hadamard_matrix)(6)
