"""Bad input: a typed error that names the place and a remedy, and a model that is as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

import torchqx
from tests.torchqx.settings import bert, llama
from torchqx import errors
from torchqx.recipe import make_recipe

RECIPE = torchqx.OutlierSuppressionPlusConfig(grid_steps=3, quantize_head=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.down(self.up(x * scale).relu())


def x(seed: int = 0) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))


@contextmanager
def unchanged(model: nn.Module, *inputs: Tensor) -> Iterator[None]:
    """Inside fails with a typed error; afterwards weights, attributes and results are what they were."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    with torch.no_grad():
        expected = model(*inputs) if inputs else None
    yield
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert {name: len(module._forward_pre_hooks) for name, module in model.named_modules()} == hooks
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert {n: type(p) for n, p in model.named_parameters()} == dict.fromkeys(
        dict(model.named_parameters()), nn.Parameter)
    for name, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value.nan_to_num(), before[name].nan_to_num())
    with torch.no_grad():
        assert expected is None or torch.equal(model(*inputs).nan_to_num(), expected.nan_to_num())


def refused(model: nn.Module, calibration, kind: type, match: str, recipe=RECIPE, inputs=None) -> None:
    """``quantize`` fails as said, and leaves nothing behind."""
    with unchanged(model, *([x()] if inputs is None else inputs)):
        with pytest.raises(kind, match=match) as caught:
            torchqx.quantize(model, recipe, calibration)
        assert caught.value.where
        assert caught.value.remedy
        assert "Remedy: " in str(caught.value)


def test_no_calibration_data() -> None:
    refused(Net(), [], errors.NoCalibrationDataError, "Net: the model was not called")


def test_an_iterator_that_fails() -> None:
    def batches() -> Iterator[Tensor]:
        yield x()
        raise OSError("disk")

    model = Net()
    with unchanged(model, x()), pytest.raises(OSError, match="disk"):
        torchqx.quantize(model, RECIPE, batches())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("calibration", ["parallel", "sequential"])
def test_nan_or_inf_in_the_data(value: float, calibration: str) -> None:
    bad = x(1)
    bad[3, 5] = value
    recipe = torchqx.OutlierSuppressionPlusConfig(grid_steps=3, calibration=calibration)
    refused(Net(), [x(), bad], errors.NonFiniteError, "up:linear:0: NaN or Inf", recipe)


def test_nan_in_a_weight_or_a_bias() -> None:
    model = Net()
    model.down.weight.data[2, 3] = float("nan")
    refused(model, [x()], errors.NonFiniteError, "down:linear:0: NaN or Inf in a weight")
    model = Net()
    model.up.bias.data[2] = float("inf")
    refused(model, [x()], errors.NonFiniteError, "(up|down):linear:0: NaN or Inf")


@pytest.mark.parametrize("batch", [
    torch.randn(8, 15), {"x": torch.randn(8, 16), "mask": torch.ones(8)}, {"y": torch.randn(8, 16)}, (x(), 1, 2),
    "text", None,
], ids=["width", "unknown field", "missing field", "too many", "no tensor", "nothing"])
def test_a_batch_that_the_model_does_not_take(batch) -> None:
    refused(Net(), [x(), batch], errors.CalibrationError, "calibration batch 1: .*", inputs=[x()])


@pytest.mark.parametrize(("fields", "match"), [
    ({"bits": 8}, "has no field bits.*its fields are .*weight_bits"),
    ({"weight_bits": 9}, "bits: 9 bits"), ({"activation_bits": 1}, "1 bits"), ({"weight_bits": "8"}, "bits"),
    ({"activation": "dynamic"}, "activation: unknown value 'dynamic'.*'token'"),
    ({"statistics": "max"}, "statistics"), ({"calibration": "serial"}, "calibration"), ({"loss": "l1"}, "loss"),
    ({"step": "go"}, "step"), ({"error_budget": 0.0}, "error_budget"), ({"error_limit": 0.01}, "error_budget"),
    ({"error_budget": float("nan")}, "error_budget"), ({"calibration_steps": 0}, "calibration_steps"),
    ({"sample_rows": 2.5}, "sample_rows"), ({"include": "*"}, "include"),
    ({"weight_granularity": "token"}, "weight_granularity"), ({"weight_granularity": "none"}, "weight_granularity"),
    ({"weight_granularity": "row"}, "granularity"),
    ({"weight_group_size": 8}, "group_size"), ({"weight_granularity": "group"}, "group_size"),
    ({"activation_group_size": 8}, "activation_group_size"), ({"activation": "group"}, "group_size"),
    ({"shift": "yes"}, "shift"), ({"grid_steps": 0}, "grid_steps"),
])
def test_recipes(fields: dict, match: str) -> None:
    with pytest.raises(errors.ConfigError, match=match):
        make_recipe(torchqx.OutlierSuppressionPlusConfig, fields)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "half", float("nan")])
def test_smoothquant_alpha(alpha) -> None:
    with pytest.raises(errors.ConfigError, match="alpha"):
        torchqx.SmoothQuantScalingConfig(alpha=alpha)


def test_groups_that_do_not_divide_a_row() -> None:
    recipe = torchqx.MinMaxConfig(activation="token", weight_granularity="group", weight_group_size=12)
    refused(Net(), [x()], errors.ConfigError, "up:linear:0: rows of 16 do not split.*divisor", recipe)


@pytest.mark.parametrize(("model", "inputs", "match"), [
    (nn.Embedding(8, 16), torch.arange(8), "no site"),
    (nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), "no site"),
    (nn.LayerNorm(16), x(), "no site"),
], ids=["embedding", "3x3 convolution", "norm"])
@pytest.mark.filterwarnings("ignore:a graph with parameters has no weighted matmul")
def test_a_model_without_sites(model: nn.Module, inputs: Tensor, match: str) -> None:
    refused(model, [inputs], errors.NoSitesError, match, inputs=[inputs])


def test_a_model_without_parameters() -> None:
    refused(nn.ReLU(), [x()], errors.NoSitesError, "ReLU: no site")


def test_everything_excluded() -> None:
    recipe = torchqx.MinMaxConfig(exclude=["*"])
    refused(Net(), [x()], errors.NoSitesError, "Net: no site.*include and exclude.*Remedy", recipe)


def test_unsupported_dtype() -> None:
    refused(Net().double(), [x().double()], errors.NoSitesError, "float64", inputs=[x().double()])


def test_unsupported_device() -> None:
    refused(Net().to("meta"), [x().to("meta")], errors.UnsupportedError, "device meta.*cpu and cuda", inputs=())


def test_a_weight_that_does_not_fit_its_input() -> None:
    model = Net()
    model.down = nn.Linear(31, 16)
    with unchanged(model), pytest.raises(errors.CalibrationError, match=r"calibration batch 0: .*"):
        torchqx.quantize(model, RECIPE, [x()])


def test_quantized_twice() -> None:
    model = torchqx.quantize(Net(), RECIPE, [x()])
    with torch.no_grad():
        expected = model(x())
    for again in (lambda: torchqx.quantize(model, RECIPE, [x()]), lambda: torchqx.prepare(model, RECIPE)):
        with pytest.raises(errors.AlreadyQuantizedError, match=r"Net: .*float model"):
            again()
    with torch.no_grad():
        assert torch.equal(model(x()), expected)
    assert model._compiled_call_impl is None


def test_prepared_twice() -> None:
    model = torchqx.prepare(Net(), RECIPE)
    with pytest.raises(errors.AlreadyQuantizedError, match="abandon"):
        torchqx.prepare(model, RECIPE)
    with torch.no_grad():
        model(x())
    torchqx.convert(model)
    assert isinstance(model.up.weight, torchqx.QuantizedWeight)


def test_convert_without_prepare_or_without_data() -> None:
    model = Net()
    with unchanged(model, x()), pytest.raises(errors.NotPreparedError, match=r"Net: .*step='prepare'"):
        torchqx.convert(model)
    with unchanged(model, x()):
        torchqx.prepare(model, RECIPE)
        with pytest.raises(errors.NoCalibrationDataError, match=r"Net: .*calibration batches"):
            torchqx.convert(model)
        torchqx.abandon(model)
    with pytest.raises(errors.NotPreparedError):
        torchqx.abandon(model)


def test_prepared_after_a_failed_convert() -> None:
    """The statistics with a NaN in them cannot be mended, but the model can start again."""
    model = torchqx.prepare(Net(), RECIPE)
    with torch.no_grad():
        model(x() * float("nan"))
    with pytest.raises(errors.NonFiniteError):
        torchqx.convert(model)
    assert not isinstance(model.up.weight, torchqx.QuantizedWeight)
    torchqx.quantize(torchqx.abandon(model), RECIPE, [x()])
    assert isinstance(model.up.weight, torchqx.QuantizedWeight)


def test_all_padding() -> None:
    batch = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.zeros(2, 8, dtype=torch.long)}
    model = bert()
    with unchanged(model), pytest.raises(errors.NoCalibrationDataError, match=r"encoder.*saw no data.*all padding"):
        torchqx.quantize(model, RECIPE, [batch])


def test_a_parameter_replaced_during_calibration() -> None:
    model = torchqx.prepare(Net(), RECIPE)
    with torch.no_grad():
        model(x())
        model.up.weight = nn.Parameter(torch.randn(32, 16))
    torchqx.convert(model)
    kinds = [isinstance(layer.weight, torchqx.QuantizedWeight) for layer in (model.up, model.down)]
    assert kinds == [False, True], "what was never seen stays as it is"


def test_compiled_with_another_backend() -> None:
    model = Net()
    model.compile(backend="eager")
    with pytest.raises(errors.UnsupportedError, match="compiled already"):
        torchqx.prepare(model, RECIPE)


def test_a_linear_on_its_own() -> None:
    """torchao's default filter."""
    def step(model: nn.Module, which: str) -> None:
        quantize_(model, torchqx.MinMaxConfig(step=which))

    model = nn.Sequential(nn.Linear(16, 16))
    with unchanged(model, x()), pytest.raises(errors.NotPreparedError, match="Linear"):
        step(model, "convert")
    with pytest.raises(errors.ConfigError, match="step"):
        quantize_(model, RECIPE)
    step(model, "prepare")
    with pytest.raises(errors.AlreadyQuantizedError):
        step(model, "prepare")
    with pytest.raises(errors.NoCalibrationDataError):
        step(model, "convert")
    model(x())
    step(model, "convert")
    with pytest.raises(errors.AlreadyQuantizedError):
        step(model, "prepare")


@pytest.mark.parametrize(("options", "match"), [
    ({"recipe": "outlier"}, "recipe"), ({"lowering": "c"}, "lowering.*'eager'|lowering"),
    ({"calibration_steps": -1}, "calibration_steps"), ({"calibration_steps": "many"}, "calibration_steps"),
])
def test_options_of_the_backend(options: dict, match: str) -> None:
    model = torch.compile(Net(), backend="torchqx", options=options)
    with torch.no_grad(), pytest.raises(errors.ConfigError, match=match):
        model(x())


def test_explain_before_anything_is_known() -> None:
    with pytest.raises(errors.NotPreparedError, match=r"Net: .*backend='torchqx'"):
        torchqx.explain(Net())


def test_an_error_under_the_backend_leaves_the_float_model() -> None:
    model = Net()
    compiled = torch.compile(copy.deepcopy(model), backend="torchqx",
                             options={"lowering": "eager", "calibration_steps": 2, "recipe": RECIPE})
    with torch.no_grad():
        assert torch.equal(compiled(x()), model(x()))
        with pytest.raises(errors.NonFiniteError, match="Remedy"):
            compiled(x() * float("nan"))
        for _ in range(2):  # calibration has begun again
            assert torch.equal(compiled(x()), model(x()))
        assert not torch.equal(compiled(x(1)), model(x(1)))


def test_every_message_has_place_and_remedy() -> None:
    error = errors.ShapeError("3 columns", where="up", remedy="give 4.")
    assert str(error) == "up: 3 columns Remedy: give 4."
    assert isinstance(error, errors.TorchqxError)
    assert isinstance(error, ValueError)
    assert str(errors.TorchqxError("bare")) == "bare"


def test_a_decoder_is_left_as_it_was_too() -> None:
    model = llama()
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    with unchanged(model), pytest.raises(errors.CalibrationError, match="calibration batch 1"):
        torchqx.quantize(model, RECIPE, [batch, {"inputs": batch["input_ids"]}])
