"""The three doors: a compiled float model, torchao's quantize_, and the plain functions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

import torchqx
from tests.architectures import ARCHITECTURES
from tests.torchqx.small import EAGER, LIVE, RECIPE, STEPS, Net, batch, calibrated, calls, error, live
from torchqx import OutlierSuppressionPlusConfig as Config
from torchqx import QuantizedWeight

NOISE = 0.01
ROUNDING = 3e-3
"""Compiled and eager paths round ties apart, now and then."""
CALIBRATING = 1e-6
"""Models calibrate in float, but GPT-2's with a named activation function."""


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def first(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "hand_written"])
def test_all_doors_lead_to_one_result(name: str):
    architecture = ARCHITECTURES[name]
    inputs = architecture.inputs(2, 9)
    expected = first(architecture.build()(**inputs))

    compiled = live(architecture.build())
    assert all(error(first(compiled(**inputs)), expected) < CALIBRATING for _ in range(STEPS))
    through_compile = first(compiled(**inputs))

    by_torchao = architecture.build()
    quantize_(by_torchao, Config(step="prepare"), filter_fn=torchqx.whole_model)
    assert all(error(first(by_torchao(**inputs)), expected) < CALIBRATING for _ in range(STEPS))
    quantize_(by_torchao, Config(step="convert"), filter_fn=torchqx.whole_model)
    assert any(isinstance(p, QuantizedWeight) for p in by_torchao.parameters())

    by_function = torchqx.quantize(architecture.build(), Config(), [inputs] * STEPS)
    assert torch.equal(first(by_torchao(**inputs)), first(by_function(**inputs)))
    assert 0 < error(first(by_function(**inputs)), expected) < 0.05
    assert error(through_compile, first(by_function(**inputs))) < 0.02

    converted = torch.compile(by_function, backend="torchqx", options=EAGER)
    assert error(first(converted(**inputs)), first(by_function(**inputs))) < 0.02
    reports = [[(s.key, s.status) for s in torchqx.explain(m).sites if s.kind == "linear"]
               for m in (compiled, by_torchao, converted)]
    assert reports[0] == reports[1] == reports[2]


def test_other_shapes_do_not_calibrate_again():
    model = Net()
    compiled = calibrated(model, batch())
    for rows, length in ((1, 7), (3, 5), (2, 20), (1, 1)):
        x = batch(rows=rows, length=length)
        assert 0 < error(compiled(x), model(x)) < 0.05  # values beyond the calibrated ranges are among them
    assert calls(model) == [STEPS] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_computes_what_eager_does(dtype: torch.dtype):
    x = batch().to(dtype)
    model = torchqx.quantize(Net().to(dtype), RECIPE, [x])
    y = torch.compile(model, backend="torchqx")(x)
    assert y.dtype == dtype
    assert error(y, model(x)) < (ROUNDING if dtype == torch.float32 else NOISE)


def test_autocast_around_the_call():
    model, x = Net(), batch()
    compiled = live(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        assert [error(compiled(x), expected) for _ in range(STEPS)] == [0.0] * STEPS
        assert 0 < error(compiled(x), expected) < NOISE
    assert 0 < error(compiled(x), model(x)) < NOISE
    assert calls(model) == [STEPS] * 4


def test_a_quantized_linear_has_the_dtype_that_autocast_asks_for():
    linear = torchqx.quantize(nn.Sequential(nn.Linear(63, 100), nn.ReLU(), nn.Linear(100, 7)),
                              Config(quantize_head=True), [batch()])
    with torch.autocast("cpu", torch.bfloat16):
        for options in (EAGER, {}):
            compiled = torch.compile(linear, backend="torchqx", options=options)
            assert linear(batch()).dtype == compiled(batch()).dtype == torch.bfloat16
            assert error(compiled(batch()), linear(batch())) < NOISE


@pytest.mark.parametrize("modes", [(True, False, True, False), (False, True, True, True)])
def test_inference_mode_now_and_then(modes: tuple[bool, ...]):
    model, x = Net(), batch()
    compiled, expected = live(model), model(x)
    errors = []
    for mode in modes:
        with torch.inference_mode(mode):
            errors.append(error(compiled(x), expected))
    assert errors[:STEPS] == [0.0] * STEPS
    assert all(0 < e < NOISE for e in errors[STEPS:])


def test_weights_made_in_inference_mode():
    x = batch()
    with torch.inference_mode():
        model = Net()
        compiled = calibrated(model, x)
        assert 0 < error(compiled(x), model(x)) < NOISE
    converted = torchqx.quantize(Net(), RECIPE, [x])
    with torch.inference_mode():
        compiled = torch.compile(converted, backend="torchqx")
        assert error(compiled(x), converted(x)) < ROUNDING
    assert error(compiled(x), converted(x)) < ROUNDING


def test_prepare_calibrates_in_inference_mode_and_converts_outside():
    model, x = Net(), batch()
    expected = model(x)
    torchqx.prepare(model, RECIPE)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    torchqx.convert(model)
    assert 0 < error(model(x), expected) < NOISE


def test_the_steps_option_and_the_recipes_own():
    model, x = Net(), batch()
    compiled = torch.compile(model, backend="torchqx", options={"recipe": Config(calibration_steps=1)} | EAGER)
    compiled(x)
    assert error(compiled(x), model(x)) > 0
    assert calls(model) == [1] * 4
    other = Net()
    compiled = torch.compile(other, backend="torchqx", options=LIVE | {"calibration_steps": 3})
    assert [error(compiled(x), other(x)) for _ in range(3)] == [0.0] * 3
    assert error(compiled(x), other(x)) > 0
