"""Values that a graph computes from parameters alone, as functions of those parameters."""

from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import Module


def expression(node: Node) -> tuple[tuple[Node, ...], GraphModule]:
    """``node`` as a module that takes the values of the placeholders, in the order given, and returns its value.

    Its graph reads the same as that of an equal expression in any other graph, and keeps nothing of this one alive.
    """
    needed = {node}
    for inner in reversed(node.graph.nodes):
        if inner in needed:
            needed.update(inner.all_input_nodes)
    ordered = [n for n in node.graph.nodes if n in needed]
    sources = tuple(n for n in ordered if n.op == "placeholder")
    graph = Graph()
    copies = {n: graph.placeholder(f"given_{i}") for i, n in enumerate(sources)}
    for n in ordered:
        if n not in copies:
            args, kwargs = map_arg((n.args, dict(n.kwargs)), copies.__getitem__)
            copies[n] = graph.create_node(n.op, n.target, args, kwargs, f"step_{len(copies)}")
    graph.output(copies[node])
    return sources, GraphModule(Module(), graph)
