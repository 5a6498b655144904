import pytest
import torch
from torch import nn
from torchao.quantization import quantize_

import torchqx
from torchqx.data_free import quantize_without_data
from torchqx.errors import AlreadyQuantizedError, ConfigError, NonFiniteError
from torchqx.plan import records_from_json

TOKEN = torchqx.MinMaxConfig(activation="token")


@pytest.mark.parametrize("recipe", [
    TOKEN,
    torchqx.MinMaxConfig(activation="group", activation_group_size=25, weight_granularity="group",
                         weight_group_size=50),
    torchqx.MinMaxConfig(activation="token", weight_granularity="tensor", weight_symmetric=False),
    torchqx.MinMaxConfig(activation="none"),
])
def test_quantizes_within_8_bits(recipe: torchqx.MinMaxConfig) -> None:
    module = nn.Linear(100, 63)
    x = torch.randn(5, 100)
    expected = module(x)
    assert quantize_without_data(module, recipe) is module
    assert (module(x) - expected).norm() < 0.03 * expected.norm()
    record = records_from_json(module.weight.plan)[0]
    assert record.status == "quantized"
    assert record.bytes_before == 4 * 6300
    parts, _ = module.weight.__tensor_flatten__()
    assert record.bytes_after == sum(getattr(module.weight, p).nbytes for p in parts)


def test_through_quantize_with_torchaos_default_filter() -> None:
    model = nn.Sequential(nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 3))
    quantize_(model, TOKEN)
    assert all(isinstance(model[i].weight, torchqx.QuantizedWeight) for i in (0, 2))


@pytest.mark.parametrize("recipe", [
    torchqx.MinMaxConfig(), torchqx.MinMaxConfig(activation="static"),
    torchqx.SmoothQuantScalingConfig(activation="token"),
    torchqx.OutlierSuppressionPlusConfig(activation="token"),
])
def test_recipes_that_need_data_say_so(recipe: torchqx.MinMaxConfig) -> None:
    module = nn.Linear(4, 4)
    before = module.weight
    with pytest.raises(ConfigError, match=r"has to see data.*Remedy: .*calibrate"):
        quantize_(module, recipe)
    assert module.weight is before


def test_choosing_by_site_key_needs_the_model() -> None:
    with pytest.raises(ConfigError, match="FqnToConfig"):
        quantize_without_data(nn.Linear(4, 4), torchqx.MinMaxConfig(activation="token", exclude=["*.mlp.*"]))


def test_twice_and_not_finite() -> None:
    module = quantize_without_data(nn.Linear(4, 4), TOKEN)
    with pytest.raises(AlreadyQuantizedError, match="Remedy"):
        quantize_without_data(module, TOKEN)
    broken = nn.Linear(4, 4)
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="Remedy"):
        quantize_without_data(broken, TOKEN)
