"""Operators that write the codes which only quantizers would make of their results."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import torchqx
from tests.state_space_blocks import STATES, WIDTH, Mamba, Mamba2, Stack, batch, build, step_by_step
from tests.state_space_models import MODELS, prompt
from torchqx import runner
from torchqx.fx_passes.fuse_codes import fuse_codes
from torchqx.fx_passes.lower import PACKED
from torchqx.fx_passes.sites.scans import CHUNK_SCAN, CONV, SELECTIVE_SCAN, STATE_UPDATE, named_arguments

EAGER = {"lowering": "eager"}
CALIBRATION = [batch(seed) for seed in range(1, 5)]


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """The graphs that are lowered."""
    found: list[GraphModule] = []

    class Kept(runner.Executable):
        def __init__(self, graph: Any, *rest: Any) -> None:
            found.append(graph.module)
            super().__init__(graph, *rest)

    monkeypatch.setattr(runner, "Executable", Kept)
    return found


def run(model: nn.Module, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(model, backend="torchqx", options=EAGER, fullgraph=True)(x)


def quantized(kind: type = Mamba, model: Stack | None = None, **fields: Any) -> Stack:
    return torchqx.quantize(model or build(kind), torchqx.QuambaConfig(**fields), [(x,) for x in CALIBRATION])


def named(graph: GraphModule, target: Any) -> list[dict[str, Any]]:
    return [named_arguments(n) for n in graph.graph.nodes if n.target is target]


@pytest.mark.parametrize("kind", [Mamba, Mamba2])
@pytest.mark.parametrize("hadamard", [False, True])
def test_the_same_results(kind: type, hadamard: bool, lowered: list[GraphModule], monkeypatch: pytest.MonkeyPatch):
    model, x = quantized(kind, hadamard=hadamard), batch(9)
    fused = run(model, x)
    monkeypatch.setattr(runner, "fuse_codes", lambda graph: None)
    apart = run(model, x)
    assert float((fused - apart).norm() / apart.norm()) < 2e-3  # a code more or less where a value lies between two
    assert float((apart - build(kind)(x)).norm() / apart.norm()) > 5e-3
    assert all(conv["out_scale"] is not None for conv in named(lowered[0], CONV))
    assert all(conv["out_scale"] is None for conv in named(lowered[1], CONV))
    scans = named(lowered[0], SELECTIVE_SCAN) + named(lowered[0], CHUNK_SCAN)
    assert {scan["out_scale"] is None for scan in scans} == {hadamard}


@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_a_step_that_writes_codes(kind: type, lowered: list[GraphModule]):
    model, x = quantized(kind, hadamard=False), batch(9, length=5)
    compiled = torch.compile(model, backend="torchqx", options=EAGER, fullgraph=True)
    steps, whole = step_by_step(compiled, x, model), compiled(x)
    assert float((steps - whole).norm() / whole.norm()) < 2e-3
    assert all(update["out_scale"] is not None for update in named(lowered[0], STATE_UPDATE))


@pytest.mark.parametrize(("fields", "count"), [
    ({"scan_scales": "head"}, 4), ({"clusters": 3}, 3), ({"scan_scales": "channel"}, 32)])
def test_each_channel_has_the_scale_of_its_head_or_cluster_or_group(fields: dict[str, Any], count: int,
                                                                    monkeypatch: pytest.MonkeyPatch):
    scales: list[Tensor] = []

    def keep(graph: Any) -> None:
        fuse_codes(graph)
        items = [i for i in graph.inputs if getattr(getattr(i, "build", None), "__name__", "") == "out_scale"]
        scales.append(items[0].build([seen[0].blocks[0].in_proj.weight] * len(items[0].weights), []))

    monkeypatch.setattr(runner, "fuse_codes", keep)
    seen = [quantized(Mamba2, **fields)]
    run(seen[0], batch(9))
    found = torchqx.explain(seen[0])["blocks.0:scan:0"].scales
    wide = [torch.tensor(found["x"]).repeat_interleave(WIDTH // len(found["x"])),
            *(torch.tensor(found[r]).repeat_interleave(STATES) for r in ("B", "C"))]
    torch.testing.assert_close(scales[0], torch.cat(wide))
    assert len(scales[0].unique()) == count + 2 + 2


def test_what_something_else_reads_stays_float(lowered: list[GraphModule]):
    class Told(Mamba):
        def forward(self, x: Tensor, states: dict[str, Tensor] | None = None) -> Tensor:
            u, _ = self.in_proj(x).transpose(1, 2).chunk(2, 1)
            u = torchqx.causal_conv1d(u, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
            return super().forward(x) + u.transpose(1, 2) + self.x_proj(u.transpose(1, 2)).sum()

    run(quantized(model=build(Told)), batch(9))
    assert [conv["out_scale"] is None for conv in named(lowered[0], CONV)] == [True, False] * 2


class Between(nn.Module):
    """Two linears; the second one reads what ``view`` makes of the first one's result."""

    def __init__(self, view: Callable[..., Tensor]) -> None:
        super().__init__()
        self.view, self.first, self.second = view, nn.Linear(64, 64), nn.Linear(64, 24)

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        return self.second(self.view(self.first(x), *given))


def stored(y: Tensor, out: Tensor) -> Tensor:
    out[:, 1:9] = y
    return y


VIEWS = {
    "slice": (lambda y: y[:, 2:5], (), True),
    "rows by a tensor": (lambda y, rows: y[:, rows], (torch.tensor([0, 3, 5, 7, 1, 2, 4, 6, 0]),), False),
    "channels by a tensor": (lambda y, channels: y[..., channels], (torch.arange(63, -1, -1),), False),
    "also stored in a slice": (stored, (torch.zeros(3, 12, 64),), False),
    "unknown rows": (lambda y, mask: y[mask], (torch.arange(24).view(3, 8) % 3 > 0,), False),
}


@pytest.mark.parametrize("name", VIEWS)
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_views_between_two_matmuls(name: str, lowered: list[GraphModule], monkeypatch: pytest.MonkeyPatch):
    view, given, fused = VIEWS[name]
    model, x = Between(view).eval(), torch.randn(3, 8, 64)
    torchqx.quantize(model, torchqx.MambaPTQConfig(quantize_head=True), [(x, *given)])
    found = torch.compile(model, backend="torchqx", options=EAGER | {"cost_model": "int8"}, fullgraph=True)(x, *given)
    first = named(lowered[0], PACKED)[0]
    assert (first["out_mul"] is not None) == fused
    assert float((found - model(x, *given)).norm() / found.norm()) < 2e-3


def test_rows_of_an_unknown_number(lowered: list[GraphModule]):
    class Chosen(Between):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x[mask])

    model, x, mask = Chosen(lambda y: y[:3]).eval(), torch.randn(9, 64), torch.arange(9) % 3 > 0
    torchqx.quantize(model, torchqx.MambaPTQConfig(quantize_head=True), [(x, mask)])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        options = EAGER | {"cost_model": "int8"}
        found = torch.compile(model, backend="torchqx", options=options, fullgraph=True)(x, mask)
    assert named(lowered[0], PACKED)[0]["out_mul"] is None
    assert float((found - model(x, mask)).norm() / found.norm()) < 2e-3


PER_MIXER = {
    "mamba": {"quantize_static": 1, "int8_linear": 4, "causal_conv1d": 1, "selective_scan": 1,
              "hadamard_quantize_static": 1},
    "mamba2": {"quantize_static": 3, "int8_linear": 2, "causal_conv1d": 1, "chunk_scan": 1,
               "hadamard_quantize_static": 1},  # its gate is a float, so the first matmul writes floats
}


@pytest.mark.parametrize("name", PER_MIXER)
def test_operators_per_mixer(name: str, lowered: list[GraphModule]):
    tokens = {"input_ids": prompt(2, 16)["input_ids"], "use_cache": False}
    model = torchqx.quantize(MODELS[name](), torchqx.QuambaConfig(), [tokens])
    torch._dynamo.reset()
    torch.compile(model, backend="torchqx", options=EAGER, fullgraph=True)(**tokens)
    names = Counter(getattr(n.target, "__name__", "").partition(".")[0] for n in lowered[0].graph.nodes)
    assert {op: names[op] / model.config.num_hidden_layers for op in PER_MIXER[name]} == PER_MIXER[name]
