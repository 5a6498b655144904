"""Small modules of odd sizes for running tests, and what the tests ask about them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchqx
from torchqx.session import SESSIONS
from torchqx.site_state import SiteState

WIDTH, INNER, STEPS = 63, 100, 2
RECIPE = torchqx.OutlierSuppressionPlusConfig()
LIVE: dict[str, Any] = {"recipe": RECIPE, "calibration_steps": STEPS, "lowering": "eager"}
EAGER = {"lowering": "eager"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Two blocks; ``seed`` makes the weights."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(nn.Module):
    """Query, key and value read one activation; ``breaks`` puts graph breaks inside and after."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.breaks, self.norm = breaks, nn.LayerNorm(64)
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.down = nn.Linear(64, INNER), nn.Linear(INNER, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q = self.q(h)
        if self.breaks:
            torch._dynamo.graph_break()
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in (q, self.k(h), self.v(h)))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        if self.breaks:
            torch._dynamo.graph_break()
        return x + self.down(torch.relu(self.up(x)))


def batch(width: int = WIDTH, rows: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def live(model: nn.Module, **options: Any) -> Any:
    """``model`` compiled, calibrating on its first STEPS calls."""
    return torch.compile(model, backend="torchqx", options=LIVE | options)


def calibrated(model: nn.Module, x: Tensor, **options: Any) -> Any:
    """:func:`live`, with the calibrating calls made."""
    compiled = live(model, **options)
    with torch.no_grad():
        for _ in range(STEPS):
            compiled(x)
    return compiled


def states(model: nn.Module) -> list[SiteState]:
    return [s for session in SESSIONS.of(model) for s in session.states_in(model)]


def calls(model: nn.Module) -> list[int]:
    return [s.calls for s in states(model)]


def error(y: Tensor, expected: Tensor) -> float:
    """Relative, of the whole tensor."""
    y, expected = y.detach(), expected.detach()
    return float((y.float() - expected.float()).norm() / expected.float().norm())
