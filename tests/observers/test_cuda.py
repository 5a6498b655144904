"""Observers and solvers follow their data to a GPU and find there what they find on the CPU."""

import pytest
import torch

from torchqx.observers import (
    ChannelMinMaxObserver,
    HistogramObserver,
    MinMaxObserver,
    RowReservoir,
    TokenQuantileObserver,
)
from torchqx.observers.solvers import LinearProblem, OutlierSuppressionPlusSolver, Sample
from torchqx.quantizers import AffineQuantizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    "kind", [MinMaxObserver, HistogramObserver, ChannelMinMaxObserver, TokenQuantileObserver, RowReservoir])
def test_observers(kind):
    x, mask = torch.randn(3, 400, 63), torch.rand(3, 400) > 0.3
    here, there = kind(site="s"), kind(site="s")
    here(x, mask)
    there(x.cuda(), mask.cuda())
    assert all(buffer.is_cuda for buffer in there.buffers())
    for name, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[name].cpu(), value)
    torch.testing.assert_close(there.bounds()[1].cpu(), here.bounds()[1])
    here.merge(there)
    assert not here.count.is_cuda


@pytest.mark.parametrize("activation", [AffineQuantizer(bits=6), AffineQuantizer(granularity="token", dynamic=True)])
def test_solvers(activation):
    x, weight = torch.randn(300, 63) * torch.linspace(-2, 3, 63).exp() + 3, torch.randn(40, 63)
    solutions = []
    for device in ("cpu", "cuda"):
        rows = x.to(device)
        problem = LinearProblem(
            "s", rows.amin(0), rows.amax(0), [weight.to(device)], [None], [Sample(rows)], activation,
            AffineQuantizer(granularity="channel", symmetric=True, signed=True))
        solutions.append(OutlierSuppressionPlusSolver().solve(problem))
    cpu, cuda = solutions
    assert cuda.loss == pytest.approx(cpu.loss, rel=0.03)
    assert cuda.error == pytest.approx(cpu.error, rel=0.03)
    assert cuda.scale.is_cuda
