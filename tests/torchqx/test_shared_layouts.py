"""One weight in several roles: other layouts, other dtypes, views after a merged matmul, outputs written in place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchqx

RECIPE = torchqx.MinMaxConfig(activation="static")


class TiedAutoencoder(nn.Module):
    """The decoder multiplies by the encoder's weight the other way round."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inner, 16))
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(F.linear(self.first(x), self.weight)) @ self.weight)


class TwoHeads(nn.Module):
    """Two linears read one activation, and a view flattens one result: no view of a merged matmul can do that."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 64), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.b(x).view(-1)
        return self.out(self.a(x) + flat.view(*x.shape[:-1], 64))


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Float and quantized results."""
    torch.manual_seed(0)
    with torch.no_grad():
        before = model(x)
        torchqx.quantize(model, torchqx.MinMaxConfig(activation="static", quantize_head=True), [x])
        torch._dynamo.reset()
        return before, torch.compile(model, backend="torchqx", options={"lowering": "eager"})(x)


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a.float() - b.float()).norm() / b.float().norm()).detach())


@pytest.mark.parametrize("inner", [16, 24])
def test_a_weight_in_two_layouts_stays_float_with_the_reason(inner: int) -> None:
    model = TiedAutoencoder(inner).eval()
    before, after = run(model, torch.randn(8, 16))
    assert relative(after, before) < 0.05
    reasons = [s.reason for s in torchqx.explain(model).sites if s.kind == "linear" and s.status != "quantized"]
    assert reasons == ["its weight is also multiplied in another layout"] * 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_views_after_a_merged_matmul_in_every_dtype(dtype: torch.dtype) -> None:
    before, after = run(TwoHeads().to(dtype).eval(), torch.randn(2, 5, 16, dtype=dtype))
    assert after.dtype == dtype
    assert relative(after, before) < 0.05


def test_outputs_can_be_written_in_place_with_gradients_enabled() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 16)).eval()
    x = torch.randn(4, 16)
    torchqx.quantize(model, RECIPE, [x])
    eager = model(x)
    eager /= 2
    compiled = torch.compile(model, backend="torchqx", options={"lowering": "eager"})(x)
    compiled /= 2
    assert relative(compiled, eager) < 0.01
