"""MambaPTQConfig and the outlier channels of its paper."""

import pytest
import torch

import torchqx
from tests.state_space_blocks import batch, build
from torchqx.errors import ConfigError

CALIBRATION = [(batch(seed),) for seed in range(1, 4)]


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def error(recipe: torchqx.MambaPTQConfig) -> float:
    model, x = torchqx.quantize(build(), recipe, CALIBRATION), batch(9)
    torch._dynamo.reset()
    y = torch.compile(model, backend="torchqx", options={"lowering": "eager"})(x)
    return float((y - build()(x)).norm() / build()(x).norm())


def test_fewer_things_quantized_fewer_errors():
    full, projections = error(torchqx.MambaPTQConfig(scan=True)), error(torchqx.MambaPTQConfig())
    assert 0 < projections < full < 0.1
    assert error(torchqx.MambaPTQConfig(weight_bits=4)) > 2 * projections
    assert error(torchqx.MambaPTQConfig(activation="token")) < projections


def test_what_each_baseline_quantizes():
    for scan, status in ((True, "quantized"), (False, "skipped")):
        torch._dynamo.reset()
        report = torchqx.explain(torchqx.quantize(build(), torchqx.MambaPTQConfig(scan=scan), CALIBRATION))
        assert report["blocks.0:scan:0"].status == report["blocks.0:conv:0"].status == status
        assert report["blocks.0.in_proj:linear:0"].status == "quantized"


def test_weight_only_leaves_activations_in_float():
    eight, four = (torchqx.MambaPTQConfig(activation="none", weight_bits=bits, weight_granularity="channel")
                   for bits in (8, 4))
    assert 0 < error(eight) < error(torchqx.MambaPTQConfig(weight_granularity="channel"))
    assert error(four) > 4 * error(eight)
    model = torchqx.quantize(build(), four, CALIBRATION)
    record = torchqx.explain(model)["blocks.0.in_proj:linear:0"]
    assert (record.status, record.activation, record.weight) == ("quantized", "float", "s4 symmetric per channel")
    assert (model(batch(9)) - build()(batch(9))).norm() > 0  # eager mode too


def test_scaling_takes_outliers_of_the_input_away():
    report = torchqx.explain(torchqx.quantize(build(), torchqx.MambaPTQConfig(smooth=0.5), CALIBRATION))
    record = report["blocks.0.in_proj:linear:0"]
    assert record.transforms == ["scale"]


def test_outlier_channels_by_both_readings():
    rows = torch.randn(2, 500, 400, generator=torch.Generator().manual_seed(0))
    rows[..., 7] *= 20
    rows[0, 3, 9] = 9.0  # beyond six deviations of the entries, not of the channels' maxima
    channels, entries = (torchqx.outlier_channels(rows, among) for among in ("channels", "entries"))
    assert channels.nonzero().flatten().tolist() == [7]
    assert entries.nonzero().flatten().tolist() == [7, 9]
    with pytest.raises(ConfigError, match="reading"):
        torchqx.outlier_channels(rows, "rows")


def test_bad_fields():
    with pytest.raises(ConfigError, match="smooth"):
        torchqx.MambaPTQConfig(smooth=1.5)
    with pytest.raises(ConfigError, match="scan"):
        torchqx.MambaPTQConfig(activation="none", scan=True)
