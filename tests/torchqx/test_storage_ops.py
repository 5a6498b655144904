"""What eager mode does with a storage tensor."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchqx import QuantizedWeight
from torchqx.errors import AlreadyQuantizedError
from torchqx.layouts import WeightLayout
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.quantizers import AffineQuantizer

K, N = 24, 10


def stored(shape: tuple[int, ...], layout: WeightLayout, dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    weight, k = torch.randn(shape).to(dtype), layout.to_matrix(torch.empty(shape)).shape[-1]
    site = SiteParameters(AffineQuantizer(6), AffineQuantizer(8, True, "channel", signed=True), torch.randn(k),
                          torch.rand(k) + 0.5, torch.tensor(-4.0), torch.tensor(4.0))
    return quantize_weight(weight, layout, "site", site)


OUT_IN, IN_OUT, CONV = WeightLayout.OUT_IN, WeightLayout.IN_OUT, WeightLayout.CONV
MATMULS = {
    "linear": ((N, K), OUT_IN, (3, K), lambda x, w: F.linear(x, w)),
    "linear by keyword": ((N, K), OUT_IN, (3, K), lambda x, w: F.linear(input=x, weight=w)),
    "matmul": ((K, N), IN_OUT, (2, 3, K), torch.matmul),
    "operator": ((K, N), IN_OUT, (3, K), lambda x, w: x @ w),
    "method": ((K, N), IN_OUT, (3, K), lambda x, w: x.matmul(w)),
    "mm": ((K, N), IN_OUT, (3, K), torch.mm),
    "addmm": ((K, N), IN_OUT, (3, K), lambda x, w: torch.addmm(torch.zeros(N), x, w)),
    "left": ((N, K), OUT_IN, (2, K, 3), lambda x, w: w @ x),
    "left function": ((N, K), OUT_IN, (K, 3), lambda x, w: torch.matmul(w, x)),
    "conv1d": ((N, K, 1), CONV, (2, K, 5), lambda x, w: F.conv1d(x, w)),
    "conv2d": ((N, 6, 2, 2), CONV, (2, 6, 4, 8), lambda x, w: F.conv2d(x, w, stride=2)),
}


@pytest.mark.parametrize("name", MATMULS)
def test_matmuls_quantize_their_activation(name: str) -> None:
    """The result is the float one up to 6-bit codes, and not that of the dequantized weight alone."""
    shape, layout, size, call = MATMULS[name]
    weight, x = stored(shape, layout), torch.randn(size)
    exact = call(x, weight.dequantize())
    error = float((call(x, weight) - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.2


@pytest.mark.parametrize("call", [
    lambda w: w + 1, lambda w: w.sum(0), lambda w: w.t() @ torch.ones(N), lambda w: F.embedding(torch.tensor([1]), w),
    lambda w: w[2:4], lambda w: torch.cat([w, w]), lambda w: F.linear(torch.ones(3, N), w.t()),
])
def test_everything_else_sees_the_float_weight(call) -> None:
    weight = stored((N, K), OUT_IN)
    torch.testing.assert_close(call(weight), call(weight.dequantize()))


def test_a_weight_used_in_another_layout() -> None:
    weight = stored((K, K), OUT_IN)
    x = torch.randn(3, K)
    torch.testing.assert_close(x @ weight, x @ weight.dequantize())


@pytest.mark.parametrize("write", [
    lambda w: w.add_(1), lambda w: w.zero_(), lambda w: nn.init.normal_(w), lambda w: w.mul_(torch.ones(K)),
])
def test_no_writes(write) -> None:
    weight = stored((N, K), OUT_IN)
    codes = weight.qdata.clone()
    with torch.no_grad(), pytest.raises(AlreadyQuantizedError, match="Remedy"):
        write(weight)
    assert torch.equal(weight.qdata, codes)


def test_to_dtype_changes_what_it_stands_for() -> None:
    weight = stored((N, K), OUT_IN)
    half = weight.to(torch.bfloat16)
    assert isinstance(half, QuantizedWeight)
    assert half.dtype == torch.bfloat16
    assert half.shape == weight.shape
    assert half.dequantize().dtype == torch.bfloat16
    assert torch.equal(half.qdata, weight.qdata)
    assert half.scale.dtype == torch.float32
    x = torch.randn(3, K)
    torch.testing.assert_close(F.linear(x, half), F.linear(x, weight))


def test_module_to() -> None:
    layer = nn.Linear(K, N)
    layer.weight = nn.Parameter(stored((N, K), OUT_IN), requires_grad=False)
    layer.to(torch.bfloat16)
    assert isinstance(layer.weight, QuantizedWeight)
    assert layer.weight.dtype == torch.bfloat16
    assert layer(torch.randn(3, K).bfloat16()).dtype == torch.bfloat16
