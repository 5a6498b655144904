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
    """Nodes with a goal among the nodes computed from them; what is written into a tensor reaches its later readers."""
    found: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        readers = list(node.users)
        if _writes(node):
            readers += [user for user in node.args[0].users if node < user]
        if any(user in goals or user in found for user in readers):
            found.add(node)
    return found


def _writes(node: Node) -> bool:
    """Whether ``node`` changes its first operand in place, as a static cache is filled."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    return in_place and bool(node.args) and isinstance(node.args[0], Node)
