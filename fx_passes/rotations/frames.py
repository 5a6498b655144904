"""In which coordinates each value of a graph is best computed: its own, or rotated by one R.

Sources are known in rotated coordinates, sinks ask for them, and an op that carries R computes in either; everything
else reads and writes plain values. A value that is computed in one way and read in the other is rotated once for all
such readers, at the cost of its size. The cheapest choice is a minimum cut, so nothing is searched for by pattern:
a residual stream is rotated where its branches' ends and its readers outweigh what else touches it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from torchqx.fx_passes.in_place import changing_values
from torchqx.fx_passes.rotations.carriers import Carried, operand, size_of
from torchqx.fx_passes.rotations.cut import NEVER, Cut
from torchqx.fx_passes.sites.ops import op_name

_LIKE = ("type_as", "view_as", "reshape_as", "expand_as", "to")  # of their second operand they read no values
_ABOUT = ("size", "dim", "getattr", "shape", "dtype", "device", "ndim", "numel")


def carriers_of(nodes: Iterable[Node], rule: Callable[[Node], Carried | None]) -> dict[Node, Carried]:
    """Ops that carry a rotation by ``rule``, of values that do not change."""
    nodes = list(nodes)
    changing = changing_values(nodes)
    found = {node: rule(node) for node in nodes if node not in changing and changing.isdisjoint(node.all_input_nodes)}
    return {node: carried for node, carried in found.items() if carried is not None}


def paired(node: Node) -> tuple[Node, str]:
    """The place of an op's paired operands."""
    return node, "paired"


def choose_frames(graph: Graph, carriers: Mapping[Node, Carried], sources: Collection[Node], free: Collection[Node],
                  sinks: Mapping[Node, Node], offline: Collection[Node] = ()) -> set[Any]:
    """Nodes whose results are best rotated, and ``paired(node)`` for ops whose paired operands are.

    Args:
        sources: nodes whose result is there in rotated coordinates; reading it plain costs a rotation.
        free: nodes that can write either way at no cost.
        sinks: reader -> the value that it asks for in rotated coordinates; what else it reads does not count.
        offline: values that are there in both coordinates: they are computed once, before the graph runs.
    """
    cut = Cut()
    for node in graph.nodes:
        if node in sources:
            cut.tie(Cut.START, node)
        elif node not in free and not (node in carriers and carriers[node].slots):
            cut.tie(node, Cut.END)
    for node in graph.nodes:
        if node in offline:
            continue
        places = {p for reader in node.users for p in _readings(node, reader, carriers, sinks)}
        if isinstance(node.meta.get("example_value"), list | tuple):
            for place in places:
                cut.tie(node, place)  # only its parts can be rotated
        elif places:
            turned, back = (node, "turned"), (node, "turned back")
            cut.arrow(turned, node, size_of(node))
            cut.arrow(node, back, size_of(node))
            for place in places:
                cut.arrow(place, turned, NEVER)
                cut.arrow(back, place, NEVER)
    choices = {*carriers, *free, *sources, *map(paired, carriers)}
    return choices & cut.solve()


def _readings(node: Node, reader: Node, carriers: Mapping[Node, Carried], sinks: Mapping[Node, Node]) -> set[Any]:
    """Where ``reader`` stands for each of its uses of ``node``'s values."""
    if reader in sinks:
        return {Cut.START} if sinks[reader] is node else set()
    if reader not in carriers:
        return {Cut.END} if reads_values(reader, node) else set()
    carried = carriers[reader]
    places: set[Any] = set()
    if any(operand(reader, slot) is node for slot in carried.slots):
        places.add(reader)
    if any(operand(reader, slot) is node for slot in carried.paired):
        places.add(paired(reader))
    return places | ({Cut.END} if reads_values(reader, node, (*carried.slots, *carried.paired)) else set())


def reads_values(reader: Node, node: Node, besides: Collection[tuple[int, ...]] = ()) -> bool:
    """Whether ``reader`` uses the values of ``node``, not only its shape or type, outside the slots ``besides``."""
    name = op_name(reader)
    if name in _ABOUT:
        return False
    if name in _LIKE and len(reader.args) > 1 and reader.args[1] is node and reader.args[0] is not node:
        return False
    found: list[Node] = []
    rest = [a for i, a in enumerate(reader.args) if (i,) not in besides and not any(s[:1] == (i,) for s in besides)]
    nested = [a for i, arg in enumerate(reader.args) if isinstance(arg, list | tuple)
              for j, a in enumerate(arg) if any(s[:1] == (i,) for s in besides) and (i, j) not in besides]
    map_arg((rest, nested, dict(reader.kwargs)), lambda n: found.append(n) or n)
    return node in found
