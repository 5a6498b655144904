"""What a graph computes from weights alone becomes an input of it, made once when the graph is bound to its weights.

    before   t = hadamard(table, signs, block, False)      embedding(ids, t)
    after    embedding(ids, t')                            t' = that, a derived input
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import Parameter

from torchqx.fx_passes.constants import expression
from torchqx.fx_passes.derived import Build, Derived
from torchqx.fx_passes.in_place import changing_values
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.fx_passes.rotations.carriers import is_known
from torchqx.fx_passes.rotations.explicit import rotation_signs
from torchqx.fx_passes.rotations.norms import moved_bias, rotated_ones, weighted
from torchqx.fx_passes.sites.ops import fake
from torchqx.storage import QuantizedWeight

_OWN = (HADAMARD, rotation_signs, rotated_ones, weighted, moved_bias)


def from_weights(graph: Graph, weights: Collection[Node]) -> set[Node]:
    """``weights``, and what known ops compute from them alone; nothing that is written to."""
    changing = changing_values(graph.nodes)
    found = set(weights) - changing
    for node in graph.nodes:
        known = node.target in _OWN or (is_known(node) and node.all_input_nodes)
        if known and node not in changing and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def weights_of(graph: QuantizedGraph) -> set[Node]:
    """The placeholders of float parameters, and of what was derived from weights."""
    placeholders = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return {n for n, item in zip(placeholders, graph.inputs, strict=True)
            if isinstance(item, Derived) or isinstance(fake(n), Parameter)}


@dataclass(frozen=True)
class Computed:
    """The build of a derived tensor that a part of a graph computes. Equal parts are equal, whatever graph they are of.

    Attributes:
        code: of the part.
        parts: of its inputs: how each is built, and of how many weights and other tensors; None for a float parameter.
    """

    code: str
    parts: tuple[tuple[Build, int, int] | None, ...]
    module: GraphModule = field(compare=False)

    def __call__(self, weights: list[QuantizedWeight], others: list[Tensor | None]) -> Tensor:
        """In float32 where the parameters are shorter, and rounded once to what the graph would have computed."""
        stored, rest, inputs = list(weights), list(others), []
        for part in self.parts:
            build, count, more = part or (None, 0, 1)
            own = [stored.pop(0) for _ in range(count)], [rest.pop(0) for _ in range(more)]
            inputs.append(own[1][0].detach() if build is None else build(*own))
        with torch.autocast(inputs[0].device.type, enabled=False):
            made = self.module(*(i.to(torch.promote_types(i.dtype, torch.float32)) for i in inputs))
            if None not in self.parts:
                return made
            return made.to(self.module(*(torch.empty_like(i, device="meta") for i in inputs)).dtype)


def take_offline(graph: QuantizedGraph) -> None:
    """Rewrite ``graph`` in place: what rotations left to compute from weights alone comes in as derived inputs."""
    gm = graph.module
    weights = weights_of(graph)
    offline = from_weights(gm.graph, weights)
    items = dict(zip([n for n in gm.graph.nodes if n.op == "placeholder"], graph.inputs, strict=True))
    ours: dict[Node, None] = {}
    for node in gm.graph.nodes:
        made = node.all_input_nodes and node in offline
        if made and (node.target in _OWN or any(n in ours for n in node.all_input_nodes)):
            ours[node] = None
    last = list(items)[-1] if items else None
    for node in [n for n in ours if not offline.issuperset(n.users)]:
        item = _derived(node, items)
        with gm.graph.inserting_after(last):
            last = gm.graph.placeholder(f"offline_{node.name}")
        last.meta = dict(node.meta)
        graph.inputs.append(item)
        node.replace_all_uses_with(last)
    for node in reversed(ours):
        if not node.users:
            gm.graph.erase_node(node)
    gm.graph.lint()
    gm.recompile()


def _derived(node: Node, items: dict[Node, Node | Derived]) -> Derived:
    """What ``node`` is, as a function of the graph's inputs."""
    sources, module = expression(node)
    builds, weights, others = [], (), ()
    for item in map(items.__getitem__, sources):
        whole = isinstance(item, Derived)
        builds.append((item.build, len(item.weights), len(item.others)) if whole else None)
        weights += item.weights if whole else ()
        others += item.others if whole else (item,)
    return Derived(Computed(str(module.graph), tuple(builds), module), weights, others)
