"""Sequential calibration computes what the calls computed, and leaves nothing behind."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.state_space_blocks import RANK, STATES, WIDTH, Mamba
from tests.torchqx.settings import quantize
from torchqx import MinMaxConfig
from torchqx.progress import quiet
from torchqx.sequential import solve_sequentially
from torchqx.site_state import SiteState
from torchqx.solve import solve_site
from torchqx.workflow import SESSION


class Mixed(nn.Module):
    """The first linear inside of an autocast block, the second behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.a(x).relu()
        return self.c(self.b(y.float()).relu())


def in_16_bits(statistics: dict) -> bool:
    return torch.equal(statistics["high"].bfloat16().float(), statistics["high"])


def walked(outside: bool, converting: bool) -> tuple[list[dict], list[bool]]:
    """A ``Mixed`` model's statistics and whether autocast was on where a site was solved.

    Args:
        outside: calibrate under autocast; converting: convert under it.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    recipe = MinMaxConfig(calibration="sequential", activation="static", quantize_head=True)
    model, seen, on = torchqx.prepare(Mixed(), recipe), [], []

    def note(state: SiteState, weights: list[Tensor]) -> None:
        seen.append({"high": state.channels.channel_bounds()[1]})
        on.append(torch.is_autocast_enabled("cpu"))
        solve_site(state, weights)

    with torch.autocast("cpu", torch.bfloat16, enabled=outside), torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 16))
    with patch("torchqx.session.solve_site", note), torch.autocast("cpu", torch.bfloat16, enabled=converting):
        torchqx.convert(model)
    assert not torch.is_autocast_enabled("cpu")
    return seen, on


@pytest.mark.parametrize("converting", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_autocast_is_that_of_the_calls(outside: bool, converting: bool):
    (a, b, c), on = walked(outside, converting)
    assert not in_16_bits(a)
    assert in_16_bits(b)
    assert in_16_bits(c) == outside  # a block that has ended says nothing of what follows
    assert on == [converting] * 3


class Counting(nn.Module):
    """Adds to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        cache.add_(self.a(x).relu())
        return self.b(cache * 1)


@torch.no_grad()
def test_what_is_remembered_stays_as_it_was():
    """A call may be walked again, for sites of another graph."""
    model = torchqx.prepare(Counting(), MinMaxConfig(calibration="sequential", quantize_head=True))
    session, cache = model.__dict__[SESSION], torch.zeros(4, 16)
    model(torch.randn(4, 16), cache)
    (call,) = session.batches
    solve_sequentially(session, session.states_in(model), quiet)
    caches = [a for a in call.args if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not a.any()]
    assert len(caches) == 1


class Gated(Mamba):
    """Between the matmul that reads the scan's x and the scan, the scan's other operands change."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor, states: Any = None) -> Tensor:
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, 1)
        dt, b, c = self.x_proj(u.transpose(1, 2)).split([RANK, STATES, STATES], -1)
        dt = self.dt_proj.weight @ dt.transpose(1, 2)
        if self.in_place:
            dt.clamp_(max=0.1)
            z.mul_(0.5)
        else:
            dt, z = dt.clamp(max=0.1), z * 0.5
        y = torchqx.selective_scan(u, dt, -self.A_log.exp(), b.transpose(1, 2), c.transpose(1, 2), self.D, z,
                                   self.dt_proj.bias, delta_softplus=True)
        return self.out_proj(y.transpose(1, 2))


@torch.no_grad()
def test_writes_in_place_in_front_of_a_scan():
    """They happen once, also where the scan's range is wanted before the walk comes to it."""
    recipe = torchqx.QuambaConfig(alpha=None, quantize_head=True, calibration="sequential", hadamard=False)
    batches, found = [torch.randn(2, 9, WIDTH) for _ in range(2)], []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = quantize(Gated(in_place).eval().requires_grad_(False), recipe, batches)
        found.append({s.key: (s.scales, s.error) for s in torchqx.explain(model).sites if s.kind in ("linear", "scan")})
    assert found[0] == found[1]
    assert set(found[0][":scan:0"][0]) == {"x", "dt", "B", "C", "z"}
