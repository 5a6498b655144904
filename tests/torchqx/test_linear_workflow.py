"""torchao's default filter: one linear at a time, seen by a hook."""

import copy

import pytest
import torch
from torch import nn
from torchao.quantization import FqnToConfig, quantize_

import torchqx
from tests.torchqx.settings import CALIBRATION, MODELS, batch, lowered, relative, result
from torchqx import HadamardConfig, MinMaxConfig, OutlierSuppressionPlusConfig, QuantizedWeight


def stepwise(model: nn.Module, make, batches, call) -> nn.Module:
    quantize_(model, make("prepare"))
    for inputs in batches:
        call(model, inputs)
    quantize_(model, make("convert"))
    return model


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return stepwise(MODELS["bert"](), lambda step: OutlierSuppressionPlusConfig(step=step, grid_steps=3),
                    CALIBRATION, result)


def test_every_linear_is_converted(bert: nn.Module) -> None:
    layers = [m for m in bert.modules() if isinstance(m, nn.Linear)]
    assert all(isinstance(m.weight, QuantizedWeight) for m in layers)
    assert not any(m._forward_pre_hooks for m in layers)
    exact = result(MODELS["bert"](), batch(9))
    assert 0 < relative(result(bert, batch(9)), exact) < 0.1


def test_the_backend_runs_it_as_eager_mode_does(bert: nn.Module) -> None:
    eager = result(bert, batch(9))
    assert relative(result(lowered(bert), batch(9)), eager) < 0.02


def test_the_report_has_full_names(bert: nn.Module) -> None:
    report = torchqx.explain(bert)
    key = "encoder.layer.0.attention.self.query:linear:0"
    assert report[key].status == "quantized"
    assert report[key].weights == ["encoder.layer.0.attention.self.query.weight"]
    assert report[key].loss_on == "outputs"


def test_a_linear_alone_finds_what_the_graph_finds() -> None:
    """One linear in a model of one linear: the same statistics, so the same weight."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 24)), torch.randn(40, 16)
    recipe = {"quantize_head": True, "shift": True, "activation": "static", "grid_steps": 4}
    hooked = stepwise(copy.deepcopy(model), lambda step: OutlierSuppressionPlusConfig(step=step, **recipe), [x],
                      lambda m, inputs: m(inputs))
    traced = torchqx.quantize(copy.deepcopy(model), OutlierSuppressionPlusConfig(**recipe), [x])
    one, two = hooked[0].weight, traced[0].weight
    for name in ("qdata", "scale", "act_pre_scale", "scale_and_zero", "per_tensor_scale"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name))


def test_a_rotated_linear() -> None:
    x = torch.randn(50, 48)
    linear = stepwise(nn.Sequential(nn.Linear(48, 7)), lambda step: HadamardConfig(step=step, shift_scale="osplus"),
                      [x], lambda m, inputs: m(inputs))
    (site,) = torchqx.explain(linear).sites
    assert site.transforms[0] == "hadamard 48 (seed 0)"
    assert linear[0].weight.hadamard.block == 48
    with torch.no_grad():
        exact = nn.functional.linear(x, linear[0].weight.dequantize(), linear[0].bias)
        assert relative(linear(x), exact) < 0.02


def test_some_linears_by_name() -> None:
    """torchao's way to choose modules, one recipe for each."""
    def make(step: str) -> FqnToConfig:
        return FqnToConfig({"0": MinMaxConfig(step=step), "2": MinMaxConfig(step=step, weight_bits=4)})

    model, x = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), torch.randn(40, 16)
    quantize_(model, make("prepare"), filter_fn=None)
    model(x)
    quantize_(model, make("convert"), filter_fn=None)
    bits = [m.weight.weight_spec.bits if isinstance(m.weight, QuantizedWeight) else None for m in model]
    assert bits == [8, None, 4]


def test_a_linear_over_the_limit_stays_float() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(40, 16)
    before = model[0].weight
    stepwise(model, lambda step: MinMaxConfig(step=step, error_budget=1e-9, error_limit=1e-9), [x],
             lambda m, inputs: m(inputs))
    assert model[0].weight is before
    assert not model[0]._forward_pre_hooks
