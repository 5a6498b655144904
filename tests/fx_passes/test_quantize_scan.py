"""Parts of the rewriting of scans: which record is a site's, what a missing scale says, how the cache moves on."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import torchqx
from tests.capture import capture_one
from tests.state_space_blocks import Mamba, Mamba2, batch, build
from torchqx import runner
from torchqx.fx_passes.constants import expression
from torchqx.fx_passes.quantize import QuantizedGraph, quantize_graph
from torchqx.fx_passes.quantize_scan import ScanStructure, carried_record, shift_in_, structure_of
from torchqx.plan import SiteRecord, records_to_json
from torchqx.session import SESSIONS
from torchqx.watched import plain_part


def weight(*records: SiteRecord) -> SimpleNamespace:
    return SimpleNamespace(plan=records_to_json(list(records)))


def record(key: str, **scales: list[float]) -> SiteRecord:
    return SiteRecord(key, "scan", "quantized", scales=scales)


@pytest.mark.parametrize(("carried", "asked", "same"), [
    ("layers.0.mixer:scan:0", "layers.0.mixer:scan:0", True),
    ("layers.0.mixer:scan:0", "mixer:scan:0", True),
    ("layers.0.mixer:scan:0", ":scan:0", True),
    ("mixer:scan:0", "layers.0.mixer:scan:0", True),
    ("layers.0.mixer:scan:1", "mixer:scan:0", False),
    ("layers.0.premixer:scan:0", "mixer:scan:0", False),
    ("layers.1.mixer:scan:0", "layers.0.mixer:scan:0", False),
])  # fmt: skip
def test_a_record_is_found_from_any_part_of_the_model(carried: str, asked: str, same: bool):
    assert (carried_record(weight(record(carried, x=[1.0])), asked) is not None) is same


def test_only_solved_sites_have_a_structure():
    carrier = SimpleNamespace(node="in_proj")
    site = SimpleNamespace(key="m:scan:0", tensors={"x": None, "B": None}, carrier=carrier, x_readers=[])

    def structure(held: SimpleNamespace | None) -> ScanStructure | None:
        return structure_of(site, {"in_proj": held})

    assert structure(None) is None
    assert structure(weight(SiteRecord("m:scan:0", "scan", "skipped"))) is None
    assert structure(weight(record("m:scan:0", x=[1.0], B=[1.0, 2.0]))).tensors == (("x", 1), ("B", 2))
    assert structure(weight(record("m:scan:0", x=[1.0]))).tensors == (("x", 1),)  # B stays in float
    site.carrier = None
    assert structure(None) is None


@pytest.mark.parametrize(("kept", "new"), [(4, 1), (4, 3), (4, 7), (1, 1)])
def test_the_state_holds_the_last_inputs(kept: int, new: int):
    state, x = torch.randn(2, 5, kept), torch.randn(2, 5, new).bfloat16()
    expected = torch.cat([state, x.float()], -1)[..., -kept:]
    shift_in_(state, x)
    assert torch.equal(state, expected)


def test_a_value_as_a_function_of_parameters():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (-torch.exp(self.a) + self.b).view(3, 1)

    gm, _ = capture_one(Model(), torch.randn(3, 4))
    view = next(n for n in gm.graph.nodes if n.target == "view")
    sources, module = expression(view)
    values = [torch.randn(3), torch.randn(3)]
    named = dict(zip(("a" if "_a_" in n.name else "b" for n in sources), values, strict=True))
    torch.testing.assert_close(module(*values), (named["b"] - named["a"].exp()).view(3, 1))


@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_what_is_derived_outlives_its_graph_and_serves_the_next(kind: type, monkeypatch: pytest.MonkeyPatch):
    """The model's weights keep it; they must not keep the graphs that asked for it."""
    watched: list[weakref.ref] = []

    def watch(gm: torch.fx.GraphModule, *args: Any) -> QuantizedGraph:
        graph = quantize_graph(gm, *args)
        watched.extend(map(weakref.ref, (gm, gm.graph, graph.module.graph)))
        return graph

    monkeypatch.setattr(runner, "quantize_graph", watch)
    recipe, derived = torchqx.QuambaConfig(), []
    with torch.no_grad():
        model = torchqx.quantize(build(kind), recipe, [(batch(1),)])
        for _ in range(2):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="torchqx", options={"lowering": "eager", "recipe": recipe})
            compiled(batch(9))
            made = [SESSIONS.get(recipe).derived.get(plain_part(p)) or {} for p in model.parameters()]
            derived.append([t for by_build in made for _, t in by_build.values()])
            del compiled
    torch._dynamo.reset()
    gc.collect()
    assert len(watched) == 2 * 3
    assert [ref for ref in watched if ref() is not None] == []
    assert derived[0]
    assert [id(t) for t in derived[0]] == [id(t) for t in derived[1]]
