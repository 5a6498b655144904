"""The public state-space functions: in eager mode, under torch.compile with shapes that change, and in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchqx

WIDTH, STATES = 20, 5


class Scan(nn.Module):
    """A small Mamba block of one's own: convolution, then scan."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Parameter(torch.randn(WIDTH, 4)), nn.Parameter(torch.randn(WIDTH))
        self.project, self.rate = nn.Linear(WIDTH, WIDTH + 2 * STATES), nn.Parameter(torch.zeros(WIDTH, STATES))

    def forward(self, x: Tensor) -> Tensor:
        u = torchqx.causal_conv1d(x.transpose(1, 2), self.conv, self.bias, "swish")
        delta, b, c = self.project(u.transpose(1, 2)).transpose(1, 2).split([WIDTH, STATES, STATES], 1)
        return torchqx.selective_scan(u, delta, -self.rate.exp(), b, c, delta_softplus=True).transpose(1, 2)

    def by_hand(self, x: Tensor) -> Tensor:
        u = F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), self.conv[:, None], self.bias, groups=WIDTH))
        delta, b, c = self.project(u.transpose(1, 2)).transpose(1, 2).split([WIDTH, STATES, STATES], 1)
        dt, state, out = F.softplus(delta), torch.zeros(x.shape[0], WIDTH, STATES), []
        for t in range(x.shape[1]):
            state = torch.exp(-dt[..., t, None] * self.rate.exp()) * state + (dt * u)[..., t, None] * b[:, None, :, t]
            out.append((state * c[:, None, :, t]).sum(-1))
        return torch.stack(out, 1)


def test_a_model_of_ones_own():
    model, x = Scan(), torch.randn(2, 30, WIDTH)
    torch.testing.assert_close(model(x), model.by_hand(x), rtol=1e-4, atol=1e-5)


def test_compiled_with_changing_shapes_without_a_new_graph():
    model, graphs = Scan().requires_grad_(False), []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count, dynamic=True, fullgraph=True)
    for steps in (30, 31, 57):
        x = torch.randn(2, steps, WIDTH)
        torch.testing.assert_close(compiled(x), model.by_hand(x), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_training_compiled(backend):
    model, twin, x = Scan(), Scan(), torch.randn(2, 12, WIDTH)
    twin.load_state_dict(model.state_dict())
    torch.compile(model, backend=backend)(x).square().sum().backward()
    twin.by_hand(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_decoding_in_place_under_inductor():
    state, conv_state = torch.randn(2, WIDTH, STATES), torch.randn(2, WIDTH, 4)
    rate, weight = -torch.rand(WIDTH, STATES), torch.randn(WIDTH, 4)

    def step(x: Tensor, b: Tensor, state: Tensor, conv_state: Tensor) -> Tensor:
        u = torchqx.causal_conv1d_update(x * 2, conv_state, weight, activation="silu")
        return torchqx.selective_state_update(state, u, u, rate, b, b, dt_softplus=True) + 1

    twins = state.clone(), conv_state.clone()
    compiled = torch.compile(step)
    with torch.no_grad():
        for _ in range(3):
            x, b = torch.randn(2, WIDTH), torch.randn(2, STATES)
            torch.testing.assert_close(compiled(x, b, state, conv_state), step(x, b, *twins))
    torch.testing.assert_close((state, conv_state), twins)


def test_chunk_scan_limits_and_states():
    x, dt, a = torch.randn(1, 9, 2, 6), torch.randn(1, 9, 2), -torch.rand(2)
    b, c = torch.randn(1, 9, 1, 4), torch.randn(1, 9, 1, 4)
    y, last = torchqx.chunk_scan(x, dt, a, b, c, dt_limit=(0.1, 0.2), return_final_states=True)
    clamped, last2 = torchqx.chunk_scan(x, dt.clamp(0.1, 0.2), a, b, c, return_final_states=True)
    torch.testing.assert_close((y, last), (clamped, last2))
    assert torchqx.chunk_scan(x.bfloat16(), dt, a, b, c).dtype == torch.bfloat16
    u = x.bfloat16().flatten(2).transpose(1, 2)
    y, last = torchqx.selective_scan(u, u, a.repeat(6)[:, None].expand(-1, 4), b[:, :, 0].mT, c[:, :, 0].mT,
                                     return_last_state=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
