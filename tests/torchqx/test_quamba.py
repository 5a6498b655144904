"""QuambaConfig on small state-space models: placement, scales, decoding, checkpoints, the report, errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torchqx
from tests.state_space_blocks import WIDTH, Mamba, Mamba2, Stack, batch, build, step_by_step
from tests.state_space_models import MODELS, prompt
from torchqx import runner
from torchqx.errors import ConfigError, NoCalibrationDataError
from torchqx.fx_passes.quantize import quantize_graph
from torchqx.fx_passes.sites.scans import CHUNK_SCAN, SELECTIVE_SCAN, named_arguments

KINDS = (Mamba, Mamba2)
CALIBRATION = [batch(seed) for seed in range(1, 5)]
EAGER = {"lowering": "eager"}


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def quantized(kind: type = Mamba, **fields: Any) -> Stack:
    return torchqx.quantize(build(kind), torchqx.QuambaConfig(**fields), [(x,) for x in CALIBRATION])


def lowered(model: Stack) -> Any:
    return torch.compile(model, backend="torchqx", options=EAGER, fullgraph=True)


def error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_close_to_float_with_everything_quantized(kind: type):
    model, x = quantized(kind), batch(9)
    report = torchqx.explain(model)
    assert {s.status for s in report.sites if s.kind in ("scan", "conv")} == {"quantized"}
    most = 0.05 if kind is Mamba else 0.2  # here projections stand in x, B and C, whose product is the result
    assert error(lowered(model)(x), build(kind)(x)) < most
    assert error(model(x), build(kind)(x)) < most  # eager mode: the projections fake-quantized, the scan in float


@pytest.mark.parametrize("kind", KINDS)
def test_steps_give_what_the_whole_sequence_gives(kind: type):
    model, x = quantized(kind), batch(9, length=7)
    compiled = lowered(model)
    whole = compiled(x)
    assert error(step_by_step(compiled, x, model), whole) < 1e-5
    assert error(whole, build(kind)(x)) > 1e-4


def test_inductor_computes_the_same():
    model, x = quantized(), batch(9)
    compiled = torch.compile(model, backend="torchqx", options={"cost_model": "int8"}, dynamic=True)
    for length in (24, 11):
        assert error(compiled(x[:, :length]), lowered(model)(x[:, :length])) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_reads_codes(kind: type, monkeypatch: pytest.MonkeyPatch):
    model, graphs = quantized(kind), []

    def keep(*args: Any) -> Any:
        graphs.append(quantize_graph(*args))
        return graphs[-1]

    monkeypatch.setattr(runner, "quantize_graph", keep)
    lowered(model)(batch(9))
    scans = [n for n in graphs[0].module.graph.nodes if n.target in (SELECTIVE_SCAN, CHUNK_SCAN)]
    assert len(scans) == 2
    given = named_arguments(scans[0])
    scaled = {name.removesuffix("_scale") for name, n in given.items() if name.endswith("_scale") and n}
    assert scaled == ({"u", "delta", "B", "C", "z"} if kind is Mamba else {"x", "dt", "B", "C"})


def test_the_report_names_tensors_scales_clips_and_errors():
    report = torchqx.explain(quantized(alpha=0.99))
    scan, conv = report["blocks.0:scan:0"], report["blocks.1:conv:0"]
    assert set(scan.scales) == {"x", "dt", "B", "C", "z"}
    assert set(conv.scales) == {"x"}
    assert 0.005 < scan.clipped["x"] < 0.02
    assert scan.clipped["dt"] == 0.0
    assert set(scan.errors) >= {"x", "dt", "B", "C", "z", "A", "D", "bias"}
    assert 0 < scan.errors["A"] < 0.02
    assert 0 < scan.error < 0.2
    assert "dt: scale" in str(report).replace("\n", " ")


def test_scales_are_of_the_largest_or_the_percentile():
    naive, percentile = (torchqx.explain(quantized(alpha=a))["blocks.0:scan:0"] for a in (None, 0.9))
    assert percentile.scales["x"][0] < 0.8 * naive.scales["x"][0]
    assert percentile.scales["dt"] == naive.scales["dt"]


def test_what_reads_the_scans_input_has_its_range():
    model = quantized(alpha=0.9)
    scale = torchqx.explain(model)["blocks.0:scan:0"].scales["x"][0]
    assert float(model.blocks[0].x_proj.weight.act_scale) == pytest.approx(scale, rel=1e-5)


def test_only_what_reads_the_scans_result_is_rotated():
    model = quantized()
    for block in model.blocks:
        assert block.out_proj.weight.hadamard.block == 32
        assert block.in_proj.weight.hadamard is block.x_proj.weight.hadamard is None
    assert quantized(hadamard=False).blocks[0].out_proj.weight.hadamard is None


def test_one_scale_for_what_one_matmul_writes():
    for shared in (False, True):
        report = torchqx.explain(quantized(shared=shared))
        scan, conv = report["blocks.0:scan:0"].scales, report["blocks.0:conv:0"].scales
        assert (scan["B"] == scan["C"]) is shared
        assert (scan["z"] == conv["x"]) is shared


def spoil(model: Stack) -> Stack:
    """One channel of the scan's input becomes large; nothing depends on it, but scales do."""
    for block in model.blocks:
        block.conv1d.bias[3] += 300
        block.x_proj.weight[:, 3] = 0
        block.in_proj.weight[WIDTH + 3] = 0  # its gate is closed
    return model


def test_the_percentile_survives_outliers_of_the_scans_input():
    x, errors = batch(9), {}
    for alpha in (None, 0.95, "search"):
        model = torchqx.quantize(spoil(build()), torchqx.QuambaConfig(alpha=alpha, hadamard=False),
                                 [(c,) for c in CALIBRATION])
        torch._dynamo.reset()
        errors[alpha] = error(lowered(model)(x), spoil(build())(x))
    assert errors[0.95] < 0.5 * errors[None]


@pytest.mark.parametrize(("channels", "enough"), [
    (slice(8), ("head", "cluster", "channel")),  # those of the first head
    (slice(0, WIDTH, 8), ("cluster", "channel")),  # one of every head
])
def test_scales_that_keep_loud_channels_apart(channels: slice, enough: tuple[str, ...]):
    def loud() -> Stack:
        model = build(Mamba2)
        for block in model.blocks:
            block.conv1d.bias[:WIDTH][channels] += 300
            block.out_proj.weight[:, channels] /= 300
        return model

    x, errors = batch(9), {}
    for scales, count in {"tensor": 1, "head": 4, "cluster": 32, "channel": 32}.items():
        recipe = torchqx.QuambaConfig(alpha=None, scan_scales=scales, activation="token", hadamard=False, smooth=0.5)
        model = torchqx.quantize(loud(), recipe, [(c,) for c in CALIBRATION])
        assert len(torchqx.explain(model)["blocks.0:scan:0"].scales["x"]) == count
        torch._dynamo.reset()
        errors[scales] = error(lowered(model)(x), loud()(x))
    assert {scales for scales, e in errors.items() if e < 0.5 * errors["tensor"]} == set(enough)


def test_clusters_of_channels():
    def scales(**fields: Any) -> Tensor:
        record = torchqx.explain(quantized(Mamba2, alpha=None, **fields))["blocks.0:scan:0"]
        assert f"({len(set(record.scales['x']))} scales)" in record.reason
        return torch.tensor(record.scales["x"])

    each, three = scales(scan_scales="channel"), scales(clusters=3)
    assert len(three.unique()) == 3
    assert (three >= each).all()
    assert torch.equal(scales(clusters=WIDTH), each)


def test_saved_and_loaded(tmp_path: Path):
    model, x = quantized(), batch(9)
    torchqx.save(model, tmp_path / "model.safetensors")
    loaded = torchqx.load(build(), tmp_path / "model.safetensors")
    assert torch.equal(lowered(loaded)(x), lowered(model)(x))
    assert torchqx.explain(loaded).to_dict() == torchqx.explain(model).to_dict()


def test_calibrating_under_compile():
    model, x = build(), batch(9)
    recipe = torchqx.QuambaConfig(calibration_steps=len(CALIBRATION))
    compiled = torch.compile(model, backend="torchqx", options=EAGER | {"recipe": recipe}, dynamic=True)
    for c in CALIBRATION:
        torch.testing.assert_close(compiled(c), build()(c), rtol=1e-5, atol=1e-5)
    y = compiled(x)
    torch._dynamo.reset()
    assert error(y, lowered(quantized())(x)) < 1e-5
    assert torchqx.explain(model)["blocks.1:scan:0"].scales == torchqx.explain(quantized())["blocks.1:scan:0"].scales


def test_layers_compiled_on_their_own_have_their_own_scales():
    model, x = quantized(), batch(9)
    expected = lowered(model)(x)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="torchqx", options=EAGER)
    assert error(model(x), expected) < 1e-5


def test_left_out_by_name():
    report = torchqx.explain(quantized(exclude=["blocks.0:scan:*"]))
    assert report["blocks.0:scan:0"].status == "skipped"
    assert "include and exclude" in report["blocks.0:scan:0"].reason
    assert report["blocks.1:scan:0"].status == "quantized"


def test_projections_only():
    report = torchqx.explain(quantized(scan=False, exclude=["blocks.0:scan:*"]))
    assert {(s.status, s.reason) for s in report.sites if s.kind in ("scan", "conv")} == {
        ("skipped", "computed in float by one operator")}


ALIKE = ("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "nemotron_h", "zamba")
"""Of the kind of others: their sites and plans are tested with all hosts."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in MODELS])
def test_generate_with_the_plan_of_a_converted_model(name: str):
    model = torchqx.quantize(MODELS[name](), torchqx.QuambaConfig(), [prompt(2, 16, seed) for seed in range(2)])
    model.compile(backend="torchqx", options=EAGER, dynamic=True)
    found = model.generate(**prompt(2, 9), max_new_tokens=3, do_sample=False, output_logits=True, eos_token_id=None,
                           return_dict_in_generate=True, pad_token_id=0)
    row = found.sequences[1:, :-1]  # without padding
    whole = model(input_ids=row, use_cache=False).logits[:, -3:]
    assert error(torch.stack(found.logits, 1)[1:], whole) < 1e-5


@pytest.mark.parametrize("fields", [{"alpha": 1.0}, {"alpha": "best"}, {"smooth": 2.0}, {"alpha": 0},
                                    {"scan_scales": "row"}, {"clusters": 0}])
def test_bad_fields(fields: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        torchqx.QuambaConfig(**fields)


def test_nothing_seen():
    model = torchqx.prepare(build(), torchqx.QuambaConfig())
    with pytest.raises(NoCalibrationDataError):
        torchqx.convert(model)
