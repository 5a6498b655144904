"""Additions in place -> ordinary ones, where nobody else reads the tensor afterwards.

    before   x += y      after   x + y
"""

import operator

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.in_place import memory_of
from torchqx.fx_passes.sites.ops import fake

_ADDITIONS = {operator.iadd: torch.add, operator.isub: torch.sub}
_METHODS = {"add_": torch.add, "__iadd__": torch.add, "sub_": torch.sub, "__isub__": torch.sub}


def functionalize_additions(gm: GraphModule) -> None:
    """Rewrite ``gm`` in place. An input of the graph that is written into stays written."""
    inputs = {memory_of(node) for node in gm.graph.nodes if node.op == "placeholder"}
    for node in gm.graph.nodes:
        function = _METHODS.get(node.target) if node.op == "call_method" else _ADDITIONS.get(node.target)
        if function is None or memory_of(node) is None or memory_of(node) in inputs:
            continue
        if _same_result(node) and not _read_later(node):
            node.op, node.target = "call_function", function
    gm.recompile()


def _same_result(node: Node) -> bool:
    """Whether the sum has the type that the tensor has already: in place, it is cast to it."""
    other = fake(node.args[1])
    return isinstance(node.args[1], int | float) or (other is not None and other.dtype == fake(node).dtype)


def _read_later(node: Node) -> bool:
    """Whether a later node reads the memory that ``node`` writes, other than through its result."""
    memory, own = memory_of(node), {node}
    later = node.next
    while later.op != "root":
        operands = [n for n in later.all_input_nodes if memory_of(n) == memory]
        if any(n not in own for n in operands):
            return True
        if operands and memory_of(later) == memory:
            own.add(later)
        later = later.next
    return False
