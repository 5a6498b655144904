"""Which node's value reaches which, and whether it goes through a weighted op on the way."""

from collections.abc import Collection

from torch.fx import GraphModule, Node


class Flow:
    """Ancestors of every node as bit sets; ``weighted`` are matmuls with parameters and attentions."""

    def __init__(self, gm: GraphModule, weighted: Collection[Node]) -> None:
        self._bit = {node: 1 << i for i, node in enumerate(gm.graph.nodes)}
        self._before: dict[Node, int] = {}
        self._before_weighted: dict[Node, int] = {}
        for node in gm.graph.nodes:
            before = through = 0
            for operand in node.all_input_nodes:
                before |= self._before[operand] | self._bit[operand]
                through |= self._before_weighted[operand]
            self._before[node] = before
            self._before_weighted[node] = through | before if node in weighted else through

    def reaches_weighted(self, start: Node, end: Node) -> bool:
        """Whether ``end`` is computed from ``start`` through at least one weighted op."""
        return bool(self._before_weighted[end] & self._bit[start])


def leads_to(gm: GraphModule, goals: Collection[Node]) -> set[Node]:
    """Nodes with a goal among the nodes computed from them."""
    found: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        if any(user in goals or user in found for user in node.users):
            found.add(node)
    return found
