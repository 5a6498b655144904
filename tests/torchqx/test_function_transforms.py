"""Models that call torch.func inside, and calls of models from torch.func outside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torchao.quantization import quantize_

import torchqx
from tests.torchqx.settings import relative
from torchqx.errors import NoCalibrationDataError, UnsupportedError

WIDTH = 16
RECIPE = torchqx.OutlierSuppressionPlusConfig(activation="token", grid_steps=2, quantize_head=True, calibration_steps=2)


class Mapped(nn.Module):
    """Projections outside, and between them whatever ``inner`` does under vmap."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.inside, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x) for part in self.parts)
        return self.out(vmap(lambda *row: self.inner(self, *row))(q, k, v))


def weighted(model: Mapped, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return model.inside(q) + k * v


def attention(model: Mapped, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]


def gated(model: Mapped, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.silu(q) * k


def batch(seed: int) -> Tensor:
    return torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("inner", [weighted, attention, gated])
def test_what_is_mapped_stays_float_and_the_rest_is_quantized(inner: Callable[..., Any]) -> None:
    exact, x = Mapped(inner)(batch(9)), batch(9)
    model = torchqx.quantize(Mapped(inner), RECIPE, [batch(1), batch(2)])
    compiled = torch.compile(Mapped(inner), backend="torchqx", options={"recipe": RECIPE, "lowering": "eager"})
    for seed in range(4):
        compiled(batch(seed))
    for quantized in (model, torch.compile(model, backend="torchqx", options={"lowering": "eager"}), compiled):
        assert 1e-6 < relative(quantized(x), exact) < 0.05
    for report in (torchqx.explain(model), torchqx.explain(compiled)):
        linears = [s for s in report.sites if s.kind == "linear"]
        assert [s.key for s in linears if s.status == "quantized"] == ["parts:linear:0", "out:linear:0"]
        skipped = [s for s in linears if s.status != "quantized"]
        assert len(skipped) == (inner is weighted)
        assert all(s.key.startswith("inside:") and "vmap" in s.reason for s in skipped)


def test_a_prepared_linear_is_not_called_from_vmap() -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    quantize_(layer, torchqx.MinMaxConfig(step="prepare"))
    with pytest.raises(UnsupportedError, match=r"vmap.*Remedy"):
        vmap(layer)(batch(0))


def test_a_quantized_linear_is_called_from_vmap() -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    quantize_(layer, torchqx.MinMaxConfig(step="prepare"))
    layer(batch(0))
    quantize_(layer, torchqx.MinMaxConfig(step="convert"))
    torch.testing.assert_close(vmap(layer)(batch(1)), layer(batch(1)))


def test_a_model_that_was_called_from_vmap_alone_has_seen_nothing() -> None:
    """Dynamo traces nothing there."""
    model = torchqx.prepare(Mapped(gated), RECIPE)
    vmap(model)(batch(0)[None])
    with pytest.raises(NoCalibrationDataError, match=r"vmap"):
        torchqx.convert(model)
