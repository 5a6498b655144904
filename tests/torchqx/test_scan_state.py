"""Statistics of scans and convolutions: which steps count."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import torchqx
from tests.capture import capture_one
from tests.state_space_blocks import Mamba, Mamba2, batch, build
from tests.state_space_models import MODELS, VOCABULARY
from torchqx.fx_passes.observe import ObservingInterpreter
from torchqx.fx_passes.sites import ScanSite, find_sites, parameter_nodes
from torchqx.fx_passes.sites.scans import TENSORS
from torchqx.scan_state import ScanState
from torchqx.workflow import SESSION

LENGTH, PADDED = 12, 5


def tokens(seed: int) -> dict[str, Tensor]:
    given = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": given, "attention_mask": torch.ones_like(given)}


def left_padded(given: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    """The same rows behind ``by`` steps of a token that stands nowhere else."""
    return {"input_ids": torch.cat([torch.full((2, by), 1), given["input_ids"]], 1),
            "attention_mask": torch.cat([torch.zeros(2, by, dtype=torch.int64), given["attention_mask"]], 1)}


def statistics(name: str, batches: list[dict[str, Tensor]]) -> dict[str, tuple[int, Tensor, float]]:
    """Site and role -> steps seen, largest magnitude per column; and the error of each site."""
    torch._dynamo.reset()
    model, found = torchqx.prepare(MODELS[name](), torchqx.QuambaConfig(alpha=0.9)), {}
    with torch.no_grad():
        for inputs in batches:
            model(**inputs, use_cache=False)
    for state in model.__dict__[SESSION].states_in(model):
        for (_, key), scan in state.scans.items():
            limits = {role: o.limits(0.9 if o.alphas else None) for role, o in scan.observers.items()}
            for role, observer in scan.observers.items():
                found[f"{key} {role}"] = int(observer.count), limits[role], scan._error(limits)
    return found


@pytest.mark.parametrize("name", ["mamba", "mamba2", "jamba"])
def test_padded_steps_do_not_count(name: str):
    real = tokens(0)
    plain, padded = statistics(name, [real]), statistics(name, [left_padded(real, PADDED)])
    assert plain.keys() == padded.keys()
    assert len(plain) >= 5
    for key, (count, limits, error) in plain.items():
        assert padded[key][0] == count, key
        torch.testing.assert_close(padded[key][1], limits, rtol=1e-4, atol=1e-5, msg=key)
        assert padded[key][2] == pytest.approx(error, rel=0.05), key


@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_sequential_calibration_sees_what_the_quantized_model_gives(kind: type):
    """Other lengths have graphs of their own: a scan is solved on the calls of all of them."""
    recipe = {"alpha": None, "weight_bits": 4, "hadamard": False}
    batches = [batch(1), batch(2, length=9), batch(3)]
    scales = {}
    for calibration in ("parallel", "sequential"):
        torch._dynamo.reset()
        model = torchqx.quantize(build(kind), torchqx.QuambaConfig(calibration=calibration, **recipe),
                                 [(x,) for x in batches])
        scales[calibration] = {s.key: s.scales for s in torchqx.explain(model).sites if s.scales}
        assert {s.status for s in torchqx.explain(model).sites if s.kind in ("scan", "conv")} == {"quantized"}
    assert scales["sequential"]["blocks.0:scan:0"]["dt"] != scales["parallel"]["blocks.0:scan:0"]["dt"]
    torch._dynamo.reset()
    peaks = {}
    for x in batches:
        gm, inputs = capture_one(model, x)
        sites = find_sites(gm, parameter_nodes(gm, inputs))
        watched = {site.node: partial(keep_peaks, site, peaks) for site in sites.scans}
        with torch.no_grad():
            ObservingInterpreter(gm, {}, (), watched).run(*inputs)
    first = "blocks.0:conv:0"
    assert scales["sequential"][first]["x"] == pytest.approx([peaks[first, "x"] / 127], rel=1e-4)
    for (key, role), peak in peaks.items():
        if (role in ("x", "dt", "z") and key.startswith("blocks.0")) or key == "blocks.1:conv:0":
            found = {c: max(scales[c][key][role]) * 127 for c in scales}
            assert abs(found["sequential"] - peak) <= abs(found["parallel"] - peak) * 1.001 + 1e-4 * peak, (key, role)


def keep_peaks(site: ScanSite, peaks: dict[tuple[str, str], float], given: dict[str, Any]) -> None:
    for role in site.tensors:
        value = float(given[TENSORS[site.node.target][role]].abs().max())
        peaks[site.key, role] = max(peaks.get((site.key, role), 0.0), value)


EVERYTHING_FLOAT = {"activation": "auto", "error_budget": 1e-9, "error_limit": 1e-9}


@pytest.mark.parametrize("calibration", ["parallel", "sequential"])
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize(("fields", "status", "reason"), [
    (EVERYTHING_FLOAT, "float", "above the error limit"),
    ({"exclude": ["*in_proj*"]}, "skipped", "left out by the recipe"),
])
def test_a_scan_is_float_with_its_carrier(fields: dict[str, Any], status: str, reason: str, converted: bool,
                                          calibration: str):
    recipe = torchqx.QuambaConfig(calibration=calibration, calibration_steps=2, **fields)
    torch._dynamo.reset()
    model, x, options = build(), batch(9), {"lowering": "eager", "cost_model": "int8"}
    with torch.no_grad():
        if converted:
            torchqx.quantize(model, recipe, [(batch(1),), (batch(2),)])
        else:
            compiled = torch.compile(model, backend="torchqx", options=options | {"recipe": recipe})
            compiled(batch(1)), compiled(batch(2)), compiled(x)
        sites = [s for s in torchqx.explain(model).sites if s.kind in ("scan", "conv")]
        if converted and fields is not EVERYTHING_FLOAT:
            y = torch.compile(model, backend="torchqx", options=options)(x)
            torch.testing.assert_close(y, model(x), rtol=2e-3, atol=2e-3)  # eager scans are float
    assert len(sites) == 4
    assert {(s.status, bool(s.scales)) for s in sites} == {(status, False)}
    for site in sites:
        block = site.key.partition(":")[0]
        assert site.reason.startswith(f"its scales travel with {block}.in_proj:linear:0, which stays float: {reason}")


def test_a_site_that_stays_float_runs_in_float():
    """Sequential calibration shows later sites what the converted model will."""
    site, given = scan_site()
    state = calibrated(site, given)
    assert not torch.equal(state.run(site.node.target, given)[0], site.node.target(**given)[0])
    state.stay_float("float", "for a reason")
    assert torch.equal(state.run(site.node.target, given)[0], site.node.target(**given)[0])


def test_runs_on_the_operands_device():
    site, given = scan_site()
    state = calibrated(site, given)
    elsewhere = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in given.items()}
    assert state.run(site.node.target, elsewhere)[0].device.type == "meta"


def test_the_percentile_is_chosen_by_another_call_than_it_starts_with():
    """Running quantiles begin with the first call's: on that they clip nothing, however large the others are."""
    site, given = scan_site()
    state = ScanState(site, "in_proj.weight", torchqx.QuambaConfig().scan_quantization())
    for factor in (1, 3, 3):
        state.observe(site, None, given | {"u": given["u"] * factor})
    state.solve()
    assert state.record.scales["x"] == pytest.approx([float(given["u"].abs().max()) * 3 / 127], rel=1e-5)


def test_a_loud_channel_does_not_hide_the_others_errors():
    """Mamba2's gate comes after the scan, and may silence it."""
    site, given = scan_site(Mamba2)
    given["x"][..., 0, 0] *= 1e4
    errors = {}
    for scales in ("tensor", "cluster"):
        state = ScanState(site, "in_proj.weight", torchqx.QuambaConfig(scan_scales=scales).scan_quantization())
        state.observe(site, None, given)
        state.solve()
        errors[scales] = state.record.error
    assert errors["tensor"] > 0.9  # a share of 31 in 32
    assert errors["cluster"] < 0.1


def scan_site(kind: type = Mamba) -> tuple[ScanSite, dict[str, Any]]:
    """The first scan of the small model, and its arguments."""
    torch._dynamo.reset()
    gm, inputs = capture_one(build(kind), batch(1))
    site = next(s for s in find_sites(gm, parameter_nodes(gm, inputs)).scans if s.kind == "scan")
    seen: list[dict[str, Any]] = []
    with torch.no_grad():
        ObservingInterpreter(gm, {}, (), {site.node: seen.append}).run(*inputs)
    return site, seen[0]


def calibrated(site: ScanSite, given: dict[str, Any]) -> ScanState:
    state = ScanState(site, "in_proj.weight", torchqx.QuambaConfig().scan_quantization())
    state.observe(site, None, given)
    state.solve()
    return state
