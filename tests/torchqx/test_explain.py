"""The report: complete, plain data, and readable."""

import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

import torchqx
from tests.torchqx.settings import CALIBRATION, EAGER, MODELS, batch, quantize, result
from torchqx import HadamardConfig, MinMaxConfig, OutlierSuppressionPlusConfig
from torchqx.cost_model import Choice
from torchqx.plan import SiteRecord, records_from_json, records_to_json
from torchqx.recipe import AffineRecipe
from torchqx.session import SESSIONS

RECIPE = OutlierSuppressionPlusConfig(grid_steps=3, shift=True, activation="static", exclude=["*down_proj*"])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return quantize(MODELS["llama"](2), RECIPE)


def test_every_site_is_there(model: nn.Module) -> None:
    report = torchqx.explain(model)
    linear = [s.key for s in report.sites if s.kind == "linear"]
    for layer in range(2):
        path = f"model.layers.{layer}"
        for key in (f"{path}.self_attn:linear:0", f"{path}.self_attn.o_proj:linear:0", f"{path}.mlp:linear:0",
                    f"{path}.mlp.down_proj:linear:0"):
            assert key in linear
    kinds = [s.kind for s in report.sites]
    assert (kinds.count("attention"), kinds.count("norm"), kinds.count("residual")) == (2, 5, 1)
    assert kinds == sorted(kinds, key=("linear", "attention", "norm", "residual").index), "linear sites first"
    assert all(s.reason for s in report.sites if s.status == "skipped")


def test_fields_of_a_quantized_site(model: nn.Module) -> None:
    site = torchqx.explain(model)["model.layers.1.self_attn:linear:0"]
    assert site.status == "quantized"
    assert site.transforms == ["shift", "scale"]
    assert site.placement
    assert site.activation == "u8 affine per tensor, static"
    assert site.weight.startswith("s8 symmetric per channel")
    assert site.solver == "OutlierSuppressionPlusSolver"
    assert site.loss_on == "attention"
    assert site.loss >= 0
    assert 0 < site.error < 0.1
    assert site.errors == {site.activation: site.error}
    assert site.operations == [f"model.layers.1.self_attn.{p}_proj:linear:0" for p in "qkv"]
    assert site.weights == [f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkv"]
    numbers = sum(model.get_parameter(name).numel() for name in site.weights)
    rows = sum(model.get_parameter(name).shape[0] for name in site.weights)
    assert (site.macs, site.bytes_before, site.bytes_after) == (numbers, 4 * numbers, numbers + 4 * rows)
    assert site.expected_gain is None, "nothing was compiled, so no number of rows is known"


def test_memory_is_what_the_weights_hold() -> None:
    """Codes and scales, in each granularity."""
    for settings in ({}, {"weight_granularity": "tensor"}, {"weight_granularity": "group", "weight_group_size": 8},
                     {"weight_granularity": "group", "weight_group_size": 16, "weight_symmetric": False}):
        model = nn.Sequential(nn.Linear(32, 24, bias=False))
        quantize(model, MinMaxConfig(activation="token", quantize_head=True, **settings), [torch.randn(5, 32)])
        weight = model[0].weight
        held = sum(t.nbytes for t in (weight.codes, weight.scale, weight.zero_point) if t is not None)
        assert torchqx.explain(model)["0:linear:0"].bytes_after == held


def test_dict_and_json(model: nn.Module) -> None:
    report = torchqx.explain(model)
    data = json.loads(report.to_json())
    assert data == json.loads(json.dumps(report.to_dict()))
    assert data["model"] == "LlamaForCausalLM"
    assert [SiteRecord.from_dict(s) for s in data["sites"]] == report.sites
    assert data["summary"]["sites"]["linear"] == {"quantized": 6, "skipped": 3}
    assert data["summary"]["bytes_before"] == sum(s["bytes_before"] for s in data["sites"])
    assert data["summary"]["bytes_after"] * 3 < data["summary"]["bytes_before"]
    assert records_from_json(records_to_json(report.sites)) == report.sites


def test_prints(model: nn.Module) -> None:
    report, out = torchqx.explain(model), io.StringIO()
    Console(file=out, width=220).print(report)
    for text in (str(report), out.getvalue()):
        assert "LlamaForCausalLM: sites" in text
        assert "model.layers.0.mlp:linear:0" in text
        assert "shift+scale" in text
        assert "KiB" in text
        assert "left out by" in text


def test_unknown_key(model: nn.Module) -> None:
    with pytest.raises(KeyError, match=r"model\.layers\.7"):
        torchqx.explain(model)["model.layers.7:linear:0"]


def test_the_compiled_wrapper_too(model: nn.Module) -> None:
    assert torchqx.explain(torch.compile(model, backend="torchqx")).sites == torchqx.explain(model).sites


def test_while_it_calibrates_and_after() -> None:
    recipe = MinMaxConfig(calibration_steps=2)
    live = torch.compile(MODELS["llama"](), backend="torchqx", options=EAGER | {"recipe": recipe})
    states = []
    for _ in range(3):
        result(live, batch(1))
        states.append({s.status for s in torchqx.explain(live).sites if s.kind == "linear"})
    assert states[0] == {"calibrating", "skipped"}
    assert states[1] == states[2] == {"quantized", "skipped"}


def test_prepared() -> None:
    model = torchqx.prepare(MODELS["bert"](), MinMaxConfig())
    result(model, CALIBRATION[0])
    assert any(s.status == "calibrating" for s in torchqx.explain(model).sites)


def test_layers_compiled_on_their_own_have_full_names() -> None:
    model, recipe = MODELS["bert"](2), MinMaxConfig(calibration_steps=1)
    for layer in model.encoder.layer:
        layer.compile(backend="torchqx", options=EAGER | {"recipe": recipe})
    result(model, batch(1))
    keys = {s.key: s.status for s in torchqx.explain(model).sites if s.kind == "linear"}
    for i in range(2):
        assert keys[f"encoder.layer.{i}.attention.self:linear:0"] == "quantized"
        assert keys[f"encoder.layer.{i}.intermediate.dense:linear:0"] == "quantized"
    assert len(keys) == 8
    norms = {s.key for s in torchqx.explain(model).sites if s.kind == "norm"}
    assert {f"encoder.layer.{i}.output.LayerNorm:norm:0" for i in range(2)} <= norms


TOKEN = MinMaxConfig(activation="token", calibration_steps=1)
ROTATED = HadamardConfig(activation="static", calibration_steps=1)


def live(model: nn.Module, recipe: AffineRecipe) -> nn.Module:
    """``model`` compiled, and calibrated on one batch."""
    compiled = torch.compile(model, backend="torchqx", options=EAGER | {"recipe": recipe})
    for seed in range(2):
        result(compiled, batch(seed))
    return compiled


def test_of_two_recipes_compiled_one_after_the_other_the_second_is_told_of() -> None:
    model, alone = MODELS["llama"](), torchqx.explain(live(MODELS["llama"](), ROTATED))
    live(model, TOKEN)
    second = live(model, ROTATED)
    assert torchqx.explain(second).sites == torchqx.explain(model).sites == alone.sites
    live(model, MinMaxConfig(activation="token", calibration_steps=2))
    assert {s.kind for s in torchqx.explain(model).sites} < {s.kind for s in alone.sites}, "no embedding is rotated"


def test_choices_are_those_under_the_recipe_that_acts() -> None:
    model, key = MODELS["llama"](), "model.layers.0.mlp.down_proj:linear:0"
    live(model, TOKEN)
    SESSIONS.get(TOKEN).note_choice(model.model.layers[0].mlp.down_proj.weight, 64, Choice("int8", 2.0))
    assert torchqx.explain(model)[key].expected_gain == 2.0
    live(model, ROTATED)
    assert torchqx.explain(model)[key].expected_gain is None


def test_layers_compiled_with_recipes_of_their_own() -> None:
    model = MODELS["bert"](2)
    for layer, recipe in zip(model.encoder.layer, (TOKEN, ROTATED), strict=True):
        layer.compile(backend="torchqx", options=EAGER | {"recipe": recipe})
    for seed in range(2):
        result(model, batch(seed))
    report = torchqx.explain(model)
    found = [report[f"encoder.layer.{i}.intermediate.dense:linear:0"] for i in range(2)]
    assert [s.activation.split()[-1] for s in found] == ["dynamic", "static"]
    assert [len(s.transforms) for s in found] == [0, 1]


def test_preparing_and_converting_start_a_new_report() -> None:
    """Also of a model that ran compiled before, and after a recipe with which every site stayed float."""
    model, alone = MODELS["llama"](), torchqx.explain(quantize(MODELS["llama"](), TOKEN))
    live(model, ROTATED)
    quantize(model, MinMaxConfig(error_budget=1e-9, error_limit=1e-9))
    assert {s.status for s in torchqx.explain(model).sites} == {"float", "skipped"}
    torchqx.prepare(model, TOKEN)
    result(model, CALIBRATION[0])
    assert {s.status for s in torchqx.explain(model).sites} == {"calibrating", "skipped"}
    torchqx.abandon(model)
    assert {s.status for s in torchqx.explain(model).sites} == {"float", "skipped"}
    assert torchqx.explain(quantize(model, TOKEN)).sites == alone.sites


def test_compiling_what_stayed_float_starts_a_new_report() -> None:
    model = quantize(MODELS["llama"](), MinMaxConfig(error_budget=1e-9, error_limit=1e-9))
    compiled = live(model, TOKEN)
    assert {s.status for s in torchqx.explain(compiled).sites} == {"quantized", "skipped"}
