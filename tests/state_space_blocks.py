"""Small state-space models written with torchqx's own functions: they trace in a moment."""

from typing import Any

import torch
from torch import Tensor, nn

import torchqx

WIDTH, STATES, RANK, TAPS, HEADS = 32, 8, 4, 4, 4


class Mamba(nn.Module):
    """Projection, convolution, selective scan, projection; with a state it is one step of decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.conv1d = nn.Conv1d(WIDTH, WIDTH, TAPS, groups=WIDTH)
        self.x_proj = nn.Linear(WIDTH, RANK + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(RANK, WIDTH)
        self.A_log = nn.Parameter(torch.rand(WIDTH, STATES))
        self.D = nn.Parameter(torch.rand(WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, states: dict[str, Tensor] | None = None) -> Tensor:
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, 1)
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        if states is None:
            u = torchqx.causal_conv1d(u, weight, bias, "silu")
        else:
            u = torchqx.causal_conv1d_update(u, states["conv"], weight, bias, "silu")
        dt, b, c = self.x_proj(u.transpose(1, 2)).split([RANK, STATES, STATES], -1)
        dt, a = (self.dt_proj.weight @ dt.transpose(1, 2)), -self.A_log.exp()
        if states is None:
            y = torchqx.selective_scan(u, dt, a, b.transpose(1, 2), c.transpose(1, 2), self.D, z, self.dt_proj.bias,
                                       delta_softplus=True)
        else:
            y = torchqx.selective_state_update(states["scan"], u[..., 0], dt[..., 0], a, b[:, 0], c[:, 0], self.D,
                                               z[..., 0], self.dt_proj.bias, dt_softplus=True)[..., None]
        return x + self.out_proj(y.transpose(1, 2))

    def states(self, rows: int) -> dict[str, Tensor]:
        return {"conv": torch.zeros(rows, WIDTH, TAPS), "scan": torch.zeros(rows, WIDTH, STATES)}


class Mamba2(nn.Module):
    """One projection, convolution, chunk scan with heads and groups, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, WIDTH + 2 * 2 * STATES + HEADS, bias=False)
        self.conv1d = nn.Conv1d(WIDTH + 4 * STATES, WIDTH + 4 * STATES, TAPS, groups=WIDTH + 4 * STATES)
        self.A_log, self.D = nn.Parameter(torch.rand(HEADS)), nn.Parameter(torch.rand(HEADS))
        self.dt_bias = nn.Parameter(torch.rand(HEADS) - 1)
        self.out_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, states: dict[str, Tensor] | None = None) -> Tensor:
        xbc, dt = self.in_proj(x).split([WIDTH + 4 * STATES, HEADS], -1)
        weight, bias, xbc = self.conv1d.weight.squeeze(1), self.conv1d.bias, xbc.transpose(1, 2)
        if states is None:
            xbc = torchqx.causal_conv1d(xbc, weight, bias, "silu")
        else:
            xbc = torchqx.causal_conv1d_update(xbc, states["conv"], weight, bias, "silu")
        u, b, c = xbc.transpose(1, 2).split([WIDTH, 2 * STATES, 2 * STATES], -1)
        u, b, c = u.unflatten(-1, (HEADS, -1)), b.unflatten(-1, (2, -1)), c.unflatten(-1, (2, -1))
        a = -self.A_log.exp()
        if states is None:
            y = torchqx.chunk_scan(u, dt, a, b, c, self.D, dt_bias=self.dt_bias, dt_softplus=True)
        else:
            width = WIDTH // HEADS
            y = torchqx.selective_state_update(
                states["scan"], u[:, 0], dt[:, 0, :, None].expand(-1, -1, width),
                a[:, None, None].expand(-1, width, STATES), b[:, 0], c[:, 0], self.D[:, None].expand(-1, width), None,
                self.dt_bias[:, None].expand(-1, width), dt_softplus=True)[:, None]
        return x + self.out_proj(y.flatten(-2))

    def states(self, rows: int) -> dict[str, Tensor]:
        return {"conv": torch.zeros(rows, WIDTH + 4 * STATES, TAPS),
                "scan": torch.zeros(rows, HEADS, WIDTH // HEADS, STATES)}


class Stack(nn.Module):
    """Two blocks of one kind and a head."""

    def __init__(self, kind: type[Mamba] | type[Mamba2]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([kind(), kind()])
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor, states: list[dict[str, Tensor]] | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, None if states is None else states[i])
        return self.head(x)


def build(kind: type[Mamba] | type[Mamba2] = Mamba) -> Stack:
    """The same weights at every call, in eval mode."""
    torch.manual_seed(0)
    model = Stack(kind).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "proj.weight" in name:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def batch(seed: int, rows: int = 2, length: int = 24) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def step_by_step(model: Any, x: Tensor, blocks: Stack) -> Tensor:
    """``model`` decoding x one step at a time."""
    states = [block.states(len(x)) for block in blocks.blocks]
    return torch.cat([model(x[:, t : t + 1], states) for t in range(x.shape[1])], 1)
