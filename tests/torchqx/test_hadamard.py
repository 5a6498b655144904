"""The recipe that rotates: which sites, in front of which solver, and what the report says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import torchqx
from tests.architectures import ARCHITECTURES
from tests.torchqx.settings import EAGER, MODELS, batch, lowered, quantize, relative, result, usual_difference
from torchqx import HadamardConfig, MinMaxConfig
from torchqx.errors import ConfigError
from torchqx.observers.solvers import MinMaxSolver, OutlierSuppressionPlusSolver, SmoothQuantSolver
from torchqx.rotations import Hadamard
from torchqx.storage import QuantizedWeight

OSPLUS = HadamardConfig(shift_scale="osplus")
ARMS: dict[str, HadamardConfig] = {
    "token": HadamardConfig(fold="none"), "static": HadamardConfig(activation="static", seed=None, fold="none"),
    "osplus": OSPLUS, "static osplus": HadamardConfig(activation="static", shift_scale="osplus"),
    "sequential": HadamardConfig(activation="auto", shift_scale="smoothquant", calibration="sequential"),
    "clipped": HadamardConfig(clip_ratio=0.95), "groups": HadamardConfig(activation="group", activation_group_size=16)}


def test_the_three_solvers() -> None:
    kinds = [type(HadamardConfig(shift_scale=s).solver()) for s in ("none", "smoothquant", "osplus")]
    assert kinds == [MinMaxSolver, SmoothQuantSolver, OutlierSuppressionPlusSolver]


@pytest.mark.parametrize(("field", "value"), [
    ("seed", -1), ("seed", 0.5), ("seed", True), ("shift_scale", "shift"), ("where", "*"), ("clip_ratio", 0),
    ("clip_ratio", 1.5), ("clip_ratio", "all"), ("fold", True), ("fold", "heads"), ("rotate_keys", "yes"),
])
def test_values_outside_their_range(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        HadamardConfig(**{field: value})


def test_which_sites_rotate() -> None:
    recipe = HadamardConfig(seed=3, where=["*.mlp*"])
    assert recipe.rotation("layers.0.mlp:linear:0", 576) == (Hadamard(576, 3), "")
    assert recipe.rotation("layers.0.mlp:linear:0", 192)[0] == Hadamard(192, 3)
    assert "where patterns" in recipe.rotation("layers.0.attention:linear:0", 576)[1]
    for columns in (63, 8, 90):
        rotation, reason = recipe.rotation("layers.0.mlp:linear:0", columns)
        assert rotation is None
        assert f"rows of {columns} split into no Hadamard block" in reason


def test_every_quantizer_is_clipped() -> None:
    assert [q.clip_ratio for q in HadamardConfig(activation="auto", clip_ratio=0.9).activation_ladder()] == [0.9, 0.9]
    assert HadamardConfig(clip_ratio=0.9).weight_quantizer().clip_ratio == 1


@pytest.mark.parametrize(("name", "arm"), [
    ("llama", "token"), ("bert", "token"), ("bert", "static"), ("llama", "osplus"), ("bert", "static osplus"),
    ("llama", "sequential"), ("bert", "clipped"), ("llama", "groups"),
])
def test_end_to_end(name: str, arm: str) -> None:
    """Near the float model in eager mode, and the backend computes the same."""
    model = MODELS[name]()
    expected = result(model, batch(9))
    model = quantize(model, ARMS[arm])
    weights = [p for p in model.parameters() if isinstance(p, QuantizedWeight)]
    assert weights
    assert all(w.hadamard is not None for w in weights)
    eager = result(model, batch(9))
    assert relative(eager, expected) < 0.1
    assert usual_difference(result(lowered(model), batch(9)), eager) < 0.01


def test_compiled_by_inductor() -> None:
    model = quantize(MODELS["llama"](), OSPLUS)
    eager = result(model, batch(9))
    torch._dynamo.reset()
    assert usual_difference(result(torch.compile(model, backend="torchqx"), batch(9)), eager) < 0.01


def test_calibrating_while_compiled() -> None:
    model = MODELS["bert"]()
    expected = result(model, batch(9))
    compiled = torch.compile(model, backend="torchqx", options=EAGER | {"recipe": OSPLUS, "calibration_steps": 2})
    with torch.no_grad():
        for seed in (1, 2):
            compiled(**batch(seed))
    assert 0 < relative(result(compiled, batch(9)), expected) < 0.1
    sites = [s for s in torchqx.explain(model).sites if s.status == "quantized"]
    assert all(s.transforms[0].startswith("hadamard") for s in sites)


def test_the_report() -> None:
    model = MODELS["llama"]()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[5] = 400.0
    model = quantize(model, HadamardConfig(where=["*self_attn*"], fold="none"))
    report = torchqx.explain(model)
    site = report["model.layers.0.self_attn:linear:0"]
    assert site.transforms == ["hadamard 32 (seed 0)"]
    assert site.placement == "online"
    assert site.outlier_ratio_before > 50 > 4 > site.outlier_ratio_after > 1
    assert f"{site.outlier_ratio_before:.1f} → {site.outlier_ratio_after:.1f}" in str(report)
    other = report["model.layers.0.mlp:linear:0"]
    assert (other.transforms, other.status) == ([], "quantized")
    assert "left out by the recipe's where patterns" in other.reason
    assert other.outlier_ratio_before == other.outlier_ratio_after


def test_the_report_of_a_clipped_range() -> None:
    site = torchqx.explain(quantize(MODELS["llama"](), ARMS["clipped"])).sites[0]
    assert site.activation == "u8 affine per token, dynamic, clipped to 0.95 of the range"


def test_saved_and_loaded_in_three_ways(tmp_path: Path) -> None:
    a = ARCHITECTURES["llama"]
    inputs = a.inputs(2, 12)
    model = torchqx.quantize(a.build(), OSPLUS, [inputs])
    with torch.no_grad():
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "hub")
    torchqx.save(model, tmp_path / "file")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    by_state = a.build()
    by_state.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=True)
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path / "hub"), torchqx.load(a.build(), tmp_path / "file"),
                   by_state):
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, expected)
        assert torchqx.explain(loaded).to_dict() == torchqx.explain(model).to_dict()


def outlying(recipe: Any) -> float:
    """Error of one linear at 4 bits whose input has a few huge channels."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48), torch.randn(200, 64)
    x[:, [3, 40]] *= 60
    model = torchqx.quantize(nn.Sequential(layer, nn.ReLU(), nn.Linear(48, 16)).eval(), recipe, [x])
    with torch.no_grad():
        return relative(model[0](x), nn.functional.linear(x, layer.weight.dequantize(), layer.bias))


def test_rotating_spreads_outliers_at_4_bits() -> None:
    bits = {"weight_bits": 4, "activation_bits": 4, "activation": "token"}
    plain, rotated = outlying(MinMaxConfig(**bits)), outlying(HadamardConfig(**bits))
    assert rotated < 0.9 * plain


def decoded(inputs: dict[str, torch.Tensor], run: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a step after a prefill, and the first layer's keys that the prefill left."""
    with torch.no_grad():
        cache = run(**inputs, use_cache=True).past_key_values
        keys = cache.layers[0].keys.clone()
        mask = torch.cat([inputs["attention_mask"], torch.ones(4, 1, dtype=torch.long)], 1)
        step = run(input_ids=inputs["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)
    return step.logits, keys


def test_a_cache_of_rotated_keys() -> None:
    """Every compiled graph of a converted model rotates queries and keys, eager mode none; live models always do."""
    recipe, inputs = HadamardConfig(rotate_keys=True, fold="none"), batch(9)
    model = quantize(MODELS["llama"](), recipe)
    site = torchqx.explain(model)["model.layers.0.self_attn:attention:0"]
    assert (site.transforms, site.placement) == (["queries and keys: hadamard 16"], "online")
    expected, keys = decoded(inputs, model)
    logits, turned = decoded(inputs, lowered(model))
    assert usual_difference(logits[:, 0], expected[:, 0]) < 0.01
    assert relative(turned, Hadamard(16).apply(keys)) < 0.01 < relative(turned, keys)
    torch._dynamo.reset()
    options = EAGER | {"recipe": recipe, "calibration_steps": 1}
    logits, turned = decoded(inputs, torch.compile(MODELS["llama"](), backend="torchqx", options=options))
    assert relative(logits, expected) < 0.1  # the prefill calibrated
    assert relative(turned, Hadamard(16).apply(keys)) < 0.1


def test_heads_fold_where_asked() -> None:
    """The projection behind attention rotates as a whole and online by default, head by head and folded with "all"."""
    placements = {}
    for fold in ("stream", "all"):
        report = torchqx.explain(quantize(MODELS["llama"](), HadamardConfig(fold=fold), [batch(1)]))
        site = report["model.layers.0.self_attn.o_proj:linear:0"]
        placements[fold] = site.placement, site.transforms[0]
    assert placements == {"stream": ("online", "hadamard 32 (seed 0)"), "all": ("folded", "hadamard 2 x 16")}
