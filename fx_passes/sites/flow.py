"""Which node's value reaches which, and whether it goes through a weighted op on the way."""

from collections.abc import Collection

from torch.fx import GraphModule, Node

from torchqx.fx_passes.in_place import memory_of, written


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
    """Nodes with a goal among the nodes computed from them; what is written into a tensor reaches its later readers,
    and those of every view of it."""
    nodes = list(gm.graph.nodes)
    sharing: dict[int | None, list[Node]] = {}
    for node in nodes:
        sharing.setdefault(memory_of(node), []).append(node)
    found: set[Node] = set()
    for node in reversed(nodes):
        readers = list(node.users)
        target = written(node)
        if target is not None:
            readers += [user for view in sharing[memory_of(target)] for user in view.users if node < user]
        if any(user in goals or user in found for user in readers):
            found.add(node)
    return found
