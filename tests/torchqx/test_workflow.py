"""Prepare, calibrate, convert: in the open, through torchao, and on how batches are packed."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

import torchqx
from tests.torchqx.settings import CALIBRATION, MODELS, batch, lowered, relative, result
from torchqx import MinMaxConfig, OutlierSuppressionPlusConfig, QuantizedWeight
from torchqx.progress import quiet
from torchqx.workflow import unwrap


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.second(self.first(x).relu()) * scale


RECIPE = MinMaxConfig(quantize_head=True)
X = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))


def weights(model: nn.Module) -> list[Tensor]:
    return [p.qdata if isinstance(p, QuantizedWeight) else p for p in model.parameters()]


@pytest.mark.parametrize("packed", [X, (X,), [X, 1.0], {"x": X}, OrderedDict(x=X, scale=1.0)],
                         ids=["tensor", "tuple", "list", "dict", "mapping"])
def test_batches(packed) -> None:
    one = torchqx.quantize(Pair(), RECIPE, [packed])
    two = torchqx.quantize(Pair(), RECIPE, [X])
    assert all(map(torch.equal, weights(one), weights(two)))


def test_a_generator_of_batches_is_read_once_and_progress_is_shown() -> None:
    shown: dict[str, int] = {}

    def progress(items, what: str):
        for item in items:
            shown[what] = shown.get(what, 0) + 1
            yield item

    torchqx.quantize(Pair(), RECIPE, (X * i for i in (1.0, 0.5)), progress)
    assert shown == {"calibrating": 2, "solving": 2}
    shown.clear()
    recipe = MinMaxConfig(quantize_head=True, calibration="sequential")
    torchqx.quantize(Pair(), recipe, (X * i for i in (1.0, 0.5)), progress)
    assert shown == {"calibrating": 2, "solving": 2}
    assert list(quiet([1, 2], "anything")) == [1, 2]


def test_calibrating_calls_give_the_float_result() -> None:
    model = Pair()
    with torch.no_grad():
        expected = model(X)
        torchqx.prepare(model, RECIPE)
        assert torch.equal(model(X), expected)
        torchqx.convert(model)
        assert 0 < relative(model(X), expected) < 0.02


def test_three_ways_are_one() -> None:
    """The plain functions, torchao's with the whole model, and one call."""
    plain = torchqx.prepare(MODELS["bert"](), OutlierSuppressionPlusConfig(grid_steps=3))
    ao = MODELS["bert"]()
    quantize_(ao, OutlierSuppressionPlusConfig(step="prepare", grid_steps=3), filter_fn=torchqx.whole_model)
    for inputs in CALIBRATION:
        result(plain, inputs)
        result(ao, inputs)
    torchqx.convert(plain)
    quantize_(ao, OutlierSuppressionPlusConfig(step="convert", grid_steps=3), filter_fn=torchqx.whole_model)
    once = torchqx.quantize(MODELS["bert"](), OutlierSuppressionPlusConfig(grid_steps=3), CALIBRATION)
    assert all(map(torch.equal, weights(plain), weights(ao)))
    assert all(map(torch.equal, weights(plain), weights(once)))
    assert torchqx.explain(plain).sites == torchqx.explain(ao).sites == torchqx.explain(once).sites


def test_whole_model_matches_the_root_alone() -> None:
    model = Pair()
    assert [name for name, m in model.named_modules() if torchqx.whole_model(m, name)] == [""]


def test_abandon() -> None:
    model = Pair()
    before = copy.deepcopy(model.__dict__)
    torchqx.abandon(torchqx.prepare(model, RECIPE))
    assert set(model.__dict__) == set(before)


def test_compiled_wrapper_and_model_are_one() -> None:
    model = Pair()
    wrapper = torch.compile(model, backend="torchqx", options={"lowering": "eager"})
    assert unwrap(wrapper) is model
    assert unwrap(model) is model
    torchqx.quantize(wrapper, RECIPE, [X])
    assert isinstance(model.first.weight, QuantizedWeight)
    with torch.no_grad():
        assert relative(wrapper(X), model(X)) < 0.01


def test_memory_falls() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    before = sum(p.nbytes for p in model.parameters())
    torchqx.quantize(model, RECIPE, [torch.randn(8, 256)])
    held = 0
    for parameter in model.parameters():
        parts = parameter.__tensor_flatten__()[0] if isinstance(parameter, QuantizedWeight) else []
        held += sum(getattr(parameter, n).nbytes for n in parts) if parts else parameter.nbytes
    assert held < before / 3.8


def test_sites_shared_by_two_modules_stay_shared() -> None:
    model = Pair()
    model.second = nn.Linear(24, 24)
    model.third = nn.Linear(24, 24)
    model.third.weight = model.second.weight
    model.forward = lambda x: model.third(model.second(model.first(x).relu()).relu())
    torchqx.quantize(model, RECIPE, [X])
    assert model.third.weight is model.second.weight
    assert isinstance(model.third.weight, QuantizedWeight)


def test_converted_under_inference_mode_and_used_outside() -> None:
    model = Pair()
    with torch.inference_mode():
        torchqx.quantize(model, RECIPE, [X])
    with torch.no_grad():
        eager = model(X * 0.9)
        assert relative(lowered(model)(X * 0.9), eager) < 1e-5


def test_bfloat16() -> None:
    model = MODELS["llama"]().bfloat16()
    inputs = batch(9)
    expected = result(model, inputs)
    torchqx.quantize(model, OutlierSuppressionPlusConfig(grid_steps=3), CALIBRATION)
    assert result(model, inputs).dtype == torch.bfloat16
    assert relative(result(lowered(model), inputs), expected) < 0.1
