"""Sequential calibration: later sites are solved on what earlier quantized sites give."""

import copy
import gc
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.architectures import ARCHITECTURES
from tests.torchqx.settings import EAGER, MODELS, batch, bert, quantize, relative, result
from torchqx import MinMaxConfig
from torchqx.progress import quiet
from torchqx.sequential import solve_sequentially
from torchqx.session import SESSIONS
from torchqx.site_state import SiteState
from torchqx.solve import solve_site
from torchqx.workflow import SESSION, abandon

BITS = {"weight_bits": 4, "activation_bits": 4, "activation": "static"}
SHORT = [batch(1), batch(2, length=9), batch(3, length=12), batch(4, length=9)]


def solved(model: nn.Module, recipe, batches) -> dict[str, dict]:
    """What each site's statistics were when it was solved, in the order of solving."""
    seen: dict[str, dict] = {}

    def note(state: SiteState, weights: list[Tensor]) -> None:
        low, high = state.channels.channel_bounds()
        seen[state.record.key] = {"low": low, "high": high, "rows": int(state.channels.count),
                                  "sample": [s.x.clone() for s in state.samples]}
        solve_site(state, weights)

    with patch("torchqx.session.solve_site", note):
        quantize(model, recipe, batches)
    return seen


@pytest.fixture(scope="module")
def statistics() -> tuple[dict, dict, dict]:
    """Parallel, sequential, and the ranges at the converted model's sites."""
    torch.manual_seed(0)
    parallel = solved(MODELS["llama"](2), MinMaxConfig(**BITS), SHORT)
    model = MODELS["llama"](2)
    sequential = solved(model, MinMaxConfig(calibration="sequential", **BITS), SHORT)
    inside = {name: [] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    hooks = [m.register_forward_pre_hook(lambda m, args, name=name: inside[name].append(args[0]))
             for name, m in model.named_modules() if name in inside]
    for inputs in SHORT:
        with torch.no_grad():
            model(**inputs)
        for values in inside.values():
            values[-1] = values[-1][inputs["attention_mask"].bool()]
    for hook in hooks:
        hook.remove()
    return parallel, sequential, {name: torch.cat(values) for name, values in inside.items()}


def test_the_first_site_sees_the_same_and_later_ones_other_inputs(statistics) -> None:
    parallel, sequential, _ = statistics
    first, *later = [key for key in sequential if "lm_head" not in key]
    assert len(later) == 7
    assert torch.equal(parallel[first]["low"], sequential[first]["low"])
    assert all(not torch.allclose(parallel[k]["low"], sequential[k]["low"]) for k in later)


def test_sites_see_what_the_converted_model_gives_them(statistics) -> None:
    _, sequential, inside = statistics
    for layer in range(2):
        for key, member in ((f"model.layers.{layer}.self_attn:linear:0", "q_proj"),
                            (f"model.layers.{layer}.mlp:linear:0", "up_proj"),
                            (f"model.layers.{layer}.mlp.down_proj:linear:0", "")):
            values = inside[f"{key.split(':')[0]}.{member}".rstrip(".")]
            torch.testing.assert_close(sequential[key]["low"], values.amin(0), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(sequential[key]["high"], values.amax(0), rtol=1e-3, atol=1e-3)


def test_batches_of_every_shape_count(statistics) -> None:
    """Other lengths have graphs of their own; a site is solved on the batches of all of them."""
    parallel, sequential, _ = statistics
    real = sum(int(b["attention_mask"].sum()) for b in SHORT)
    assert {s["rows"] for s in parallel.values()} == {s["rows"] for s in sequential.values()} == {real}


def test_the_sample_of_a_region_is_replaced_too() -> None:
    recipe = torchqx.OutlierSuppressionPlusConfig(grid_steps=2, activation_bits=4)
    parallel = solved(MODELS["llama"](2), recipe, SHORT)
    recipe.calibration = "sequential"
    sequential = solved(MODELS["llama"](2), recipe, SHORT)
    key = "model.layers.1.self_attn:linear:0"
    (before,), (after,) = parallel[key]["sample"], sequential[key]["sample"]
    assert before.shape == after.shape
    assert 0.001 < relative(after, before) < 0.5


def test_on_average_no_worse() -> None:
    ratios = []
    for seed in range(4):
        model = bert(2)
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                random = torch.Generator().manual_seed(i + seed)
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=random))
        inputs = batch(50 + seed, count=8)
        expected = result(model, inputs)
        errors = [relative(result(quantize(copy.deepcopy(model), MinMaxConfig(calibration=kind, **BITS)), inputs),
                           expected) for kind in ("parallel", "sequential")]
        ratios.append(errors[1] / errors[0])
    assert sum(ratios) / len(ratios) < 1.03, ratios


@pytest.mark.parametrize("name", ["mixtral", "hand_written", "vit", "gpt2", "bloom", "torch_encoder"])
def test_every_form(name: str) -> None:
    """Experts, matmuls with the weight on the left, convolutions, addmm, baddbmm, encoders with decoders."""
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.build(), architecture.inputs(2, 8)
    report = {}
    for kind in ("parallel", "sequential"):
        converted = quantize(copy.deepcopy(model), MinMaxConfig(calibration=kind, activation="static"), [inputs])
        report[kind] = [(s.key, s.status) for s in torchqx.explain(converted).sites]
    assert report["parallel"] == report["sequential"]
    assert sum(status == "quantized" for _, status in report["sequential"]) > 4


def test_under_the_backend() -> None:
    """The first calls give the float model's results; then the model is what convert makes of the same batches."""
    recipe, model = MinMaxConfig(calibration="sequential", calibration_steps=4, **BITS), MODELS["llama"](2)
    converted = quantize(copy.deepcopy(model), recipe, SHORT)
    torch._dynamo.reset()
    live = torch.compile(copy.deepcopy(model), backend="torchqx", options=EAGER | {"recipe": recipe})
    for inputs in SHORT:
        assert relative(result(live, inputs), result(model, inputs)) < 1e-5
    inputs = batch(9)
    assert relative(result(live, inputs), result(converted, inputs)) < 0.2 * relative(
        result(converted, inputs), result(model, inputs))
    ranges = {s.key: s.errors for s in torchqx.explain(live).sites}
    for site in torchqx.explain(converted).sites:
        assert ranges[site.key] == pytest.approx(site.errors, rel=1e-3)


def test_two_models_of_one_class_are_apart() -> None:
    recipe = MinMaxConfig(calibration="sequential", calibration_steps=2, activation="static", quantize_head=True)
    torch.manual_seed(3)
    models = [nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2)]
    live = [torch.compile(m, backend="torchqx", options=EAGER | {"recipe": recipe}) for m in models]
    x = torch.randn(40, 16)
    with torch.no_grad():
        expected = [m(x) for m in models]
        for _ in range(2):  # turn by turn
            assert torch.equal(live[0](x), expected[0])
            assert torch.equal(live[1](x), expected[1])
        for compiled, original in zip(live, expected, strict=True):
            assert 0 < relative(compiled(x), original) < 0.03


def test_nothing_is_remembered_afterwards() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    torchqx.prepare(model, MinMaxConfig(calibration="sequential", quantize_head=True))
    session = model.__dict__["_torchqx_session"]
    with torch.no_grad():
        model(torch.randn(4, 16))
    assert len(session.batches) == 1
    states = session.states_in(model)
    solve_sequentially(session, states, quiet)
    assert session.batches == []
    assert [s.record.status for s in states] == ["quantized", "quantized"]


@torch.no_grad()
def test_what_was_remembered_of_a_model_goes_with_it():
    recipe = MinMaxConfig(calibration="sequential", calibration_steps=3)
    session = SESSIONS.get(recipe)
    models = [nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(2)]
    for model in models:
        torch.compile(model, backend="torchqx", options=EAGER | {"recipe": recipe})(torch.randn(4, 16))
    assert len(session.batches) == 2
    del model
    models.pop()
    torch._dynamo.reset()
    gc.collect()
    assert len(session.batches) == 1
    assert models


@torch.no_grad()
def test_what_was_remembered_goes_when_calibration_is_abandoned():
    model = torchqx.prepare(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)),
                            MinMaxConfig(calibration="sequential"))
    model(torch.randn(4, 16))
    session = model.__dict__[SESSION]
    assert len(session.batches) == 1
    abandon(model)
    assert session.batches == []
