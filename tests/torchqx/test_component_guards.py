"""Dynamo checks a storage tensor as one tensor, and every weight that passes gives its own output."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import torchqx
from tests.torchqx.small import EAGER, RECIPE, Net, batch, error

OTHER = torchqx.OutlierSuppressionPlusConfig(weight_symmetric=False, weight_granularity="tensor", quantize_head=True)
"""Weights of other components, and of other sizes of them, than the default recipe's."""


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def converted(seed: int = 0, recipe: torchqx.OutlierSuppressionPlusConfig = RECIPE) -> Net:
    return torchqx.quantize(Net(seed), recipe, [batch()])


def guards(module: type[nn.Module]) -> list[str]:
    """Of the graphs compiled for ``module``."""
    return [str(e.guard_manager) for e in _debug_get_cache_entry_list(module.forward.__code__)]


def test_no_component_is_guarded_and_the_weight_is():
    torch.compile(converted(), backend="torchqx", options=EAGER)(batch())
    (text,) = guards(Net)
    assert "['weight'], QuantizedWeight" in text
    assert not [part for part in (".qdata", ".scale", ".act_pre_scale", "__tensor_flatten__") if part in text]


def test_weights_with_other_components_run_on_the_same_trace():
    model, x = converted(), batch()
    compiled = torch.compile(model, backend="torchqx", options=EAGER)
    assert error(compiled(x), model(x)) < 2e-3
    other = converted(5, OTHER)
    for mine, its in zip(model.layers, other.layers, strict=True):
        mine.up.weight, mine.down.weight = its.up.weight, its.down.weight
    assert error(compiled(x), model(x)) < 2e-3
    assert len(guards(Net)) == 1


def test_a_float_weight_in_the_place_of_a_quantized_one_is_traced_again():
    model, x = converted(), batch()
    compiled = torch.compile(model, backend="torchqx", options=EAGER | {"calibration_steps": 1})
    compiled(x)
    model.layers[0].up.weight = nn.Parameter(model.layers[0].up.weight.dequantize())
    assert error(compiled(x), model(x)) < 2e-3
    assert len(guards(Net)) == 2


HEAD = torchqx.OutlierSuppressionPlusConfig(quantize_head=True)


class Reads(nn.Module):
    """Multiplies with a component of its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(63, 100)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * self.layer.weight.scale if isinstance(self.layer.weight, torchqx.QuantizedWeight) else y


def test_a_component_that_the_model_reads_keeps_its_guards():
    x = batch()
    model, other = (torchqx.quantize(Reads(), recipe, [x]) for recipe in (HEAD, OTHER))
    compiled = torch.compile(model, backend="torchqx", options=EAGER)
    assert error(compiled(x), model(x)) < 5e-3
    model.layer.weight = other.layer.weight  # its scale is [1]
    assert error(compiled(x), model(x)) < 5e-3
    assert len(guards(Reads)) == 2
