"""The observers in torchao's PT2E flow."""

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from torchqx.errors import ConfigError
from torchqx.observers import (
    ChannelMinMaxObserver,
    HistogramObserver,
    MeanMinMaxObserver,
    MinMaxObserver,
    PercentileObserver,
    RowReservoir,
    TokenQuantileObserver,
)
from torchqx.observers.pt2e import quantizer_from_pt2e


class LinearInputs(Quantizer):
    """Quantizes the input of every linear by one spec."""

    def __init__(self, spec: QuantizationSpec) -> None:
        self.spec = spec

    def annotate(self, model):
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: self.spec}, _annotated=True)
        return model

    def validate(self, model) -> None:
        pass


@pytest.mark.parametrize(
    ("observer", "qscheme", "dynamic"),
    [
        (MinMaxObserver, torch.per_tensor_affine, False),
        (MinMaxObserver, torch.per_tensor_symmetric, False),
        (MinMaxObserver, torch.per_tensor_affine, True),
        (MeanMinMaxObserver, torch.per_tensor_affine, False),
        (HistogramObserver, torch.per_tensor_affine, False),
        (PercentileObserver.with_args(percentile=99.999), torch.per_tensor_affine, False),
        (ChannelMinMaxObserver, torch.per_tensor_affine, False),
        (ChannelMinMaxObserver, torch.per_channel_symmetric, False),
        (TokenQuantileObserver.with_args(quantile=1.0), torch.per_tensor_affine, False),
        (RowReservoir.with_args(capacity=64), torch.per_tensor_affine, False),
    ],
)
def test_prepare_calibrate_convert(observer, qscheme, dynamic):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(63, 20), nn.GELU(), nn.Linear(20, 7)).eval()
    x = torch.randn(50, 63)
    spec = QuantizationSpec(dtype=torch.int8, observer_or_fake_quant_ctr=observer, quant_min=-128, quant_max=127,
                            qscheme=qscheme, is_dynamic=dynamic)
    graph = prepare_pt2e(torch.export.export(model, (x,)).module(), LinearInputs(spec))
    with torch.no_grad():
        graph(x)
        converted = convert_pt2e(graph)
        error = float((converted(x) - model(x)).norm() / model(x).norm())
    assert any("dequantize" in str(node.target) for node in converted.graph.nodes)
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize(
    ("dtype", "low", "high", "qscheme", "bits", "signed", "symmetric"),
    [
        (torch.int8, -128, 127, torch.per_tensor_affine, 8, True, False),
        (torch.int8, -127, 127, torch.per_tensor_symmetric, 8, True, True),
        (torch.uint8, 0, 255, None, 8, False, False),
        (torch.uint8, 0, 127, torch.per_tensor_affine, 7, False, False),
        (torch.int8, -8, 7, torch.per_tensor_symmetric, 4, True, True),
        (None, None, None, None, 8, False, False),
    ],
)
def test_quantizers_from_arguments(dtype, low, high, qscheme, bits, signed, symmetric):
    quantizer = quantizer_from_pt2e(dtype, low, high, qscheme, False)
    assert (quantizer.bits, quantizer.signed, quantizer.symmetric) == (bits, signed, symmetric)


def test_arguments_that_no_quantizer_fits():
    with pytest.raises(ConfigError, match="float16"):
        quantizer_from_pt2e(torch.float16, None, None, None, False)
    with pytest.raises(ConfigError, match="0 to 1"):
        quantizer_from_pt2e(torch.uint8, 0, 1, None, False)


def test_eps_is_the_smallest_scale():
    observer = MinMaxObserver(dtype=torch.uint8, eps=0.25)
    observer(torch.zeros(2, 2))
    assert float(observer.calculate_qparams()[0]) == 0.25
