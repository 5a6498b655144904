"""What every layer reads and no layer computes, such as position embeddings and masks, is computed once on CPUs.

    before   cos = (positions * frequencies).cos()            y = q * cos      in every layer
    after    cos = stored((positions * frequencies).cos())    y = q * cos

Inductor merges such elementwise expressions into each kernel that reads them, and in front of operators that it calls
it even writes one copy for each: 30 layers then compute the same cosines and the same mask 30 times.
"""

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.in_place import changing_values, memory_of
from torchqx.fx_passes.sites.ops import fake, is_mapped, op_name
from torchqx.fx_passes.stored import store

_PRODUCTS = frozenset({"linear", "matmul", "bmm", "baddbmm", "addmm", "einsum", "scaled_dot_product_attention",
                       "conv1d", "conv2d"})
"""With torchqx's operators, what a layer does: whatever does not depend on one of these is the same for all layers."""


def store_shared(gm: GraphModule) -> GraphModule:
    """Mark in place the values in front of all layers that several nodes behind the first read; returns ``gm``."""
    nodes = list(gm.graph.nodes)
    layers: set[Node] = set()
    for node in nodes:
        if _is_product(node) or not layers.isdisjoint(node.all_input_nodes):
            layers.add(node)
    changing, seen = changing_values(nodes), set()
    for node in nodes:
        memory = memory_of(node)
        own = memory not in seen
        seen.add(memory)
        if not own or node in layers or node in changing or not _is_computed(node):
            continue
        if sum(len(layers.intersection(view.users)) for view in _views(node)) > 1:
            store(node)
    gm.graph.lint()
    gm.recompile()
    return gm


def _is_product(node: Node) -> bool:
    ours = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "torchqx"
    return ours or op_name(node) in _PRODUCTS


def _is_computed(node: Node) -> bool:
    """Whether the node makes a tensor on a CPU."""
    value = fake(node)
    made = node.op in ("call_function", "call_method") and value is not None and value.device.type == "cpu"
    return made and not is_mapped(node)


def _views(node: Node) -> Iterator[Node]:
    """The node, and all that shows the same memory in another shape."""
    yield node
    for user in node.users:
        if memory_of(user) == memory_of(node):
            yield from _views(user)
