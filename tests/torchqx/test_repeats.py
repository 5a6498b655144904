"""A batch that calibrates twice counts once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.state_space_blocks import Mamba, Mamba2, build
from tests.state_space_blocks import batch as state_space_batch
from tests.torchqx.settings import EAGER
from torchqx.repeats import digest_of

K = 32


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(K, 24), nn.ReLU(), nn.Linear(24, 8)).eval()


def heavy(seed: int) -> Tensor:
    """Six rows, each of a size of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, K, generator=generator) * torch.logspace(0, 2, 6)[:, None]


def sites(batches: list[Tensor], **fields: Any) -> list[Any]:
    torch._dynamo.reset()
    recipe = torchqx.MinMaxConfig(activation="static", quantize_head=True, **fields)
    return torchqx.explain(torchqx.quantize(mlp(), recipe, batches)).sites


@pytest.mark.parametrize("calibration", ["parallel", "sequential"])
def test_the_report_is_that_of_the_batch_alone(calibration: str) -> None:
    first, second = heavy(1), heavy(2)
    repeated = sites([first, second, first.clone(), second, first], calibration=calibration)
    assert repeated == sites([first, second], calibration=calibration)
    assert repeated[0].error > 0.1, "the largest row does not fit what the others give"


def test_calls_count_although_they_repeat() -> None:
    recipe = torchqx.MinMaxConfig(activation="static", quantize_head=True, calibration_steps=3)
    model = mlp()
    compiled = torch.compile(model, backend="torchqx", options=EAGER | {"recipe": recipe})
    seen = []
    for _ in range(3):
        compiled(heavy(1))
        seen.append({s.status for s in torchqx.explain(model).sites})
    assert seen == [{"calibrating"}, {"calibrating"}, {"quantized"}]
    assert "calibrated on 6 rows" in torchqx.explain(model)["0:linear:0"].reason


def test_what_tells_calls_apart() -> None:
    x, p = torch.arange(6.0), nn.Parameter(torch.ones(2))
    calls = [("a", [x, p, 3]), ("b", [x, p, 3]), ("a", [x, p, 4]), ("a", [x, nn.Parameter(torch.ones(2)), 3]),
             ("a", [x.flip(0), p, 3]), ("a", [x.view(2, 3), p, 3]), ("a", [x.view(torch.int32), p, 3]),
             ("a", [x.bfloat16(), p, 3]), ("a", [torch.tensor(1.0), p, 3]), ("a", [x, p, True]), ("a", [x, p, None]),
             ("a", [1, 23]), ("a", [12, 3])]
    assert len({digest_of(*call) for call in calls}) == len(calls)
    assert digest_of("a", [x, p, 3]) == digest_of("a", [torch.stack([x, x], 1)[:, 0], p, 3])


def test_what_has_no_bytes_is_never_a_repeat() -> None:
    sparse = torch.eye(3).to_sparse()
    assert digest_of("a", [sparse]) != digest_of("a", [sparse])


@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_a_scan_sees_each_call_once(kind: type) -> None:
    def scales(*calls: Tensor) -> list[Any]:
        torch._dynamo.reset()
        model = torchqx.quantize(build(kind), torchqx.QuambaConfig(), [(x,) for x in calls])
        return [site.scales for site in torchqx.explain(model).sites if site.kind == "scan"]

    quiet, loud = state_space_batch(1), 4 * state_space_batch(2)
    once = scales(quiet, loud)
    assert once
    assert scales(quiet, loud, quiet, quiet, quiet) == once
