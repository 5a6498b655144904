"""The proof of a fold: it sees what a wrong rewrite would change, and only that."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.capture import capture_one
from tests.fx_passes.rotations.rotate import rotate_graph
from tests.fx_passes.rotations.test_fold import Block, K, plain
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.rotations.fold import copied
from torchqx.fx_passes.rotations.functional import functionalize_additions
from torchqx.fx_passes.rotations.norms import bare_layer_norm
from torchqx.fx_passes.rotations.prove import difference


def test_float32_graphs_are_proved_in_float64() -> None:
    gm, inputs = capture_one(Block(plain, norm=nn.RMSNorm), torch.randn(2, 5, K))
    assert rotate_graph(gm, inputs, heads=True).proof < 1e-12


@pytest.mark.parametrize("damage", ["rotation", "mean"])
def test_a_wrong_fold_is_seen(damage: str) -> None:
    gm, inputs = capture_one(Block(plain), torch.randn(2, 5, K))
    folded = rotate_graph(gm, inputs, heads=True).folded
    graph, copies = copied(folded)
    wrong = GraphModule(folded, graph)
    target = HADAMARD if damage == "rotation" else bare_layer_norm
    node = next(n for n in graph.nodes if n.target is target)
    node.args = (*node.args[:3], not node.args[3]) if damage == "rotation" else node.args[:3]
    changed = {node} if damage == "mean" else set()
    assert difference(folded, wrong, copies, changed, inputs) > 1e-3


def test_equal_graphs_have_no_difference() -> None:
    def code(x: Tensor) -> Tensor:
        y = x.float() * 2
        y += x
        return y.sum(0)

    gm, inputs = capture_one(code, torch.randn(3, 4))
    graph, copies = copied(gm)
    assert difference(gm, GraphModule(gm, graph), copies, (), inputs) == 0


def test_integers_that_one_graph_writes_into_stay_as_they_were_for_the_other() -> None:
    def code(places: Tensor) -> Tensor:
        buckets = places * 2
        buckets += places
        return buckets * 1.5

    gm, inputs = capture_one(code, torch.arange(4))
    graph, copies = copied(gm)
    after = GraphModule(gm, graph)
    functionalize_additions(after)
    assert difference(gm, after, copies, (), inputs) == 0
