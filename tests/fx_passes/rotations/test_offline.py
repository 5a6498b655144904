"""What is computed from weights alone: found, taken out of the graph, and the same for equal graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from tests.capture import capture_one
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.fx_passes.rotations.norms import weighted
from torchqx.fx_passes.rotations.offline import Computed, from_weights, take_offline, weights_of
from torchqx.rotations import Hadamard

K, SEED = 12, 5


def signs(weights: list, others: list) -> Tensor:
    return Hadamard(K, SEED).signs(K)


def lookup(dtype: torch.dtype = torch.float32, before: int = 0) -> QuantizedGraph:
    """embedding(tokens, hadamard(table · g)) + g, after ``before`` ops that have nothing to do with it."""
    graph = Graph()
    inputs: dict[Node, Any] = {}
    for name, value in (("tokens", None), ("table", torch.empty(9, K, dtype=dtype)), ("gain", torch.empty(K))):
        node = graph.placeholder(name)
        if value is not None:
            node.meta["example_value"] = nn.Parameter(value)
        inputs[node] = node
    tokens, table, gain = inputs
    given = graph.placeholder("signs")
    inputs[given] = Derived(signs, (gain,))
    for _ in range(before):
        tokens = graph.call_function(torch.add, (tokens, 0))
    scaled = graph.call_function(weighted, (table, gain, 1.0))
    turned = graph.call_function(HADAMARD, (scaled, given, K, False))
    rows = graph.call_function(torch.nn.functional.embedding, (tokens, turned))
    graph.output(graph.call_function(torch.add, (rows, gain)))
    return QuantizedGraph(GraphModule(nn.Module(), graph), list(inputs.values()))


def names(nodes: Any) -> set[str]:
    return {n.name for n in nodes}


def test_what_is_known_from_weights() -> None:
    graph = lookup(before=1)
    assert names(weights_of(graph)) == {"table", "gain", "signs"}
    assert names(from_weights(graph.module.graph, weights_of(graph))) == {
        "table", "gain", "signs", "weighted", "hadamard_default"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_taken_out(dtype: torch.dtype) -> None:
    graph = lookup(dtype)
    table, gain, tokens = torch.randn(9, K).to(dtype), torch.randn(K), torch.tensor([3, 8])
    exact = Hadamard(K, SEED).apply(table.double() * (gain.double() + 1))
    take_offline(graph)
    assert [n.name for n in graph.module.graph.nodes if n.op == "call_function"] == ["embedding", "add"]
    item = graph.inputs[-1]
    assert isinstance(item, Derived)
    assert (names(item.weights), names(item.others)) == ({"gain"}, {"table", "gain"})
    made = item.build([None], [table, gain])
    assert made.dtype == dtype
    once = 0.505 * torch.finfo(dtype).eps * exact.abs() + 1e-6
    assert bool(((made - exact).abs() <= once).all()), "rounded more than once"
    result = graph.module(tokens, table, gain, Hadamard(K, SEED).signs(K), made)
    torch.testing.assert_close(result, made[tokens] + gain)


def test_equal_parts_are_one() -> None:
    """Two graphs of one model find the same copy."""
    first, second, other = lookup(), lookup(before=2), lookup()
    step = next(n for n in other.module.graph.nodes if n.target is weighted)
    step.args = (*step.args[:2], 0.0)
    builds: list[Computed] = []
    for graph in (first, second, other):
        take_offline(graph)
        builds.append(graph.inputs[-1].build)
    assert builds[0] == builds[1] != builds[2]
    assert hash(builds[0]) == hash(builds[1])


def test_weights_that_the_graph_writes_are_not_known() -> None:
    def code(table: Tensor) -> Tensor:
        table.add_(1)
        return table * 2

    gm, _ = capture_one(code, torch.zeros(3))
    assert from_weights(gm.graph, gm.graph.find_nodes(op="placeholder")) == set()


def test_what_is_drawn_at_random_is_not_known() -> None:
    gm, _ = capture_one(lambda table: torch.nn.functional.dropout(table, 0.5, training=True) * 2, torch.zeros(3))
    weights = gm.graph.find_nodes(op="placeholder")
    assert from_weights(gm.graph, weights) == set(weights)
