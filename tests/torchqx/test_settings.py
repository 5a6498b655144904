"""The settings of a recipe, in combination: the rewritten graph computes what the storage tensors do in eager mode."""

import copy

import pytest
import torch

import torchqx
from tests.torchqx.settings import MODELS, batch, lowered, quantize, relative, result, usual_difference
from torchqx import MinMaxConfig, OutlierSuppressionPlusConfig, SmoothQuantScalingConfig

OS = OutlierSuppressionPlusConfig
GRID = {"grid_steps": 3}
# recipe, largest error of the result
MATRIX = {
    "default": (OS(**GRID), 0.15),
    "static, shift": (OS(activation="static", shift=True, **GRID), 0.15),
    "static, no shift": (OS(activation="static", shift=False, **GRID), 0.15),
    "static, region's loss off": (OS(activation="static", loss="linear", **GRID), 0.15),
    "token": (OS(activation="token", **GRID), 0.06),
    "token, shift": (OS(activation="token", shift=True, **GRID), 0.06),
    "group": (OS(activation="group", activation_group_size=8, **GRID), 0.06),
    "symmetric activation": (OS(activation="static", activation_symmetric=True, **GRID), 0.15),
    "symmetric token": (MinMaxConfig(activation="token", activation_symmetric=True), 0.06),
    "asymmetric weight": (MinMaxConfig(activation="token", weight_symmetric=False), 0.06),
    "asymmetric weight, static, shift": (OS(activation="static", shift=True, weight_symmetric=False, **GRID), 0.15),
    "weight per tensor": (MinMaxConfig(activation="token", weight_granularity="tensor"), 0.08),
    "asymmetric weight per tensor": (
        MinMaxConfig(activation="token", weight_granularity="tensor", weight_symmetric=False), 0.08),
    "weight per group": (OS(weight_granularity="group", weight_group_size=16, shift=True, **GRID), 0.2),
    "asymmetric groups": (
        OS(weight_granularity="group", weight_group_size=8, weight_symmetric=False, weight_bits=4,
           activation="group", activation_group_size=16, **GRID), 0.3),
    "mean of min-max": (OS(activation="static", statistics="mean_minmax", **GRID), 0.15),
    "percentile": (OS(activation="static", statistics="percentile", **GRID), 0.15),
    "mse": (OS(activation="static", statistics="mse", **GRID), 0.15),
    "SmoothQuant": (SmoothQuantScalingConfig(), 0.15),
    "SmoothQuant, searched": (SmoothQuantScalingConfig(alpha=None, activation="static"), 0.15),
    "W4A8": (OS(weight_bits=4, **GRID), 0.6),
    "W6A6": (OS(weight_bits=6, activation_bits=6, **GRID), 0.2),
    "W4A4": (OS(weight_bits=4, activation_bits=4, **GRID), 0.9),
    "head": (MinMaxConfig(activation="token", quantize_head=True), 0.06),
    "weight-only": (MinMaxConfig(activation="none"), 0.05),
    "weight-only, 4 bits in groups": (
        OS(activation="none", weight_bits=4, weight_granularity="group", weight_group_size=8, shift=True, **GRID), 0.4),
}


# Biases, and matmuls whose activation and requantization fuse: what the encoder has and the decoder has not.
ENCODER = ("default", "static, shift", "group", "asymmetric weight, static, shift", "weight per group", "W6A6",
           "weight-only", "weight-only, 4 bits in groups")


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    return {name: build() for name, build in MODELS.items()}


@pytest.mark.parametrize(("which", "name"), [("llama", n) for n in MATRIX] + [("bert", n) for n in ENCODER])
def test_graph_and_eager_agree(models: dict[str, torch.nn.Module], which: str, name: str) -> None:
    (recipe, limit), model = MATRIX[name], models[which]
    inputs = batch(9, 3, 11)
    expected = result(model, inputs)
    converted = quantize(copy.deepcopy(model), recipe)
    eager = result(converted, inputs)
    assert 0 < relative(eager, expected) < limit
    assert usual_difference(result(lowered(converted), inputs), eager) < 1e-4


@pytest.mark.parametrize("settings", [
    {"activation": "static"}, {"activation": "token"}, {"activation": "group", "activation_group_size": 16},
    {"activation": "none"},
], ids=["static", "token", "group", "none"])
def test_error_falls_with_bits(models: dict[str, torch.nn.Module], settings: dict) -> None:
    inputs, model = batch(9), models["bert"]
    expected = result(model, inputs)
    errors = [relative(result(quantize(copy.deepcopy(model), MinMaxConfig(
        weight_bits=bits, activation_bits=bits, **settings)), inputs), expected) for bits in (4, 6, 8)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def linears(model: torch.nn.Module) -> dict[str, object]:
    return {s.key: s for s in torchqx.explain(model).sites if s.kind == "linear"}


def test_include_and_exclude() -> None:
    sites = linears(quantize(MODELS["llama"](), MinMaxConfig(include=["*mlp*"], exclude=["*down_proj*"])))
    assert {key for key, s in sites.items() if s.status == "quantized"} == {"model.layers.0.mlp:linear:0"}
    assert "include and exclude" in sites["model.layers.0.mlp.down_proj:linear:0"].reason


def test_the_head_is_left_out_unless_asked_for() -> None:
    assert "quantize_head" in linears(quantize(MODELS["llama"](), MinMaxConfig()))["lm_head:linear:0"].reason
    asked = linears(quantize(MODELS["llama"](), MinMaxConfig(quantize_head=True)))
    assert asked["lm_head:linear:0"].status == "quantized"


def test_which_activation_quantizer_a_site_gets() -> None:
    """A site that is over its budget when static is per token where that is better, and float above the limit."""
    model = MODELS["bert"]()
    plenty = linears(quantize(copy.deepcopy(model), OS(error_budget=0.5, error_limit=0.5, **GRID)))
    assert all("static" in s.activation and not s.reason for s in plenty.values() if s.status == "quantized")

    tight = OS(error_budget=1e-6, error_limit=1.0, **GRID)
    stepped = [s for s in linears(quantize(copy.deepcopy(model), tight)).values() if s.status == "quantized"]
    assert any("per token, dynamic" in s.activation for s in stepped)
    for site in stepped:
        assert list(site.errors) == ["u8 affine per tensor, static", "u8 affine per token, dynamic"]
        assert "over the error budget" in site.reason
        assert site.error <= 1.1 * min(site.errors.values())

    one = OS(error_budget=1e-6, error_limit=0.004, exclude=["*output*"], **GRID)
    floats = [s for s in linears(quantize(copy.deepcopy(model), one)).values() if s.status == "float"]
    assert floats
    assert all("above the error limit of 0.004" in s.reason for s in floats)
    assert all(min(s.errors.values()) > 0.004 and s.bytes_after == s.bytes_before > 0 for s in floats)


def test_the_budget_doubles_with_each_bit_fewer() -> None:
    assert [OS(weight_bits=b).tolerance for b in (8, 7, 6, 4)] == [1, 2, 4, 16]
    assert OS(activation_bits=4).tolerance == 16
