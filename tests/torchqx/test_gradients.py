"""A quantized model does not train, and says so."""

import pytest
import torch
from torch import nn

import torchqx
from tests.torchqx.small import EAGER, RECIPE, STEPS, Net, batch, calibrated, error, live
from torchqx.errors import TrainingError


@pytest.fixture
def converted() -> nn.Module:
    return torchqx.quantize(Net(), RECIPE, [batch()])


def test_backward_through_a_calibrating_and_a_calibrated_model_raises():
    model, x = Net().train(), batch()
    compiled, expected = live(model), model(x).detach()
    for _ in range(STEPS + 1):
        y = compiled(x)
        assert y.requires_grad
        assert error(y.detach(), expected) < 0.01
        with pytest.raises(TrainingError, match="Remedy"):
            y.sum().backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_backward_through_a_converted_model_raises(converted: nn.Module, compiled: bool):
    model = torch.compile(converted, backend="torchqx", options=EAGER) if compiled else converted
    with pytest.raises(TrainingError, match="no backward"):
        model(batch()).sum().backward()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gradient_for_the_input_raises(converted: nn.Module, compiled: bool):
    converted.requires_grad_(False)
    model = torch.compile(converted, backend="torchqx", options=EAGER) if compiled else converted
    x = batch().requires_grad_()
    with pytest.raises(TrainingError):
        torch.autograd.grad(model(x).sum(), x)


def test_nothing_is_attached_where_nobody_asks(converted: nn.Module):
    x = batch()
    with torch.no_grad():
        assert not converted(x).requires_grad
    converted.requires_grad_(False)
    assert not converted(x).requires_grad
    assert not torch.compile(converted, backend="torchqx", options=EAGER)(x).requires_grad


def test_a_float_head_on_frozen_features_trains(converted: nn.Module):
    converted.requires_grad_(False)
    features, head = torch.compile(converted, backend="torchqx", options=EAGER), nn.Linear(63, 5)
    head(features(batch())).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_dropout_stays_on_in_training_mode():
    class Dropped(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    model, x = Dropped().train(), batch()
    compiled = calibrated(model, x)
    with torch.no_grad():
        assert 0.3 < (compiled(x) == 0).float().mean() < 0.7
        model.eval()
        assert error(compiled(x), model(x)) < 0.01
