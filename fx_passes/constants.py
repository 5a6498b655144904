"""Values that a graph computes from parameters alone, as functions of those parameters."""

from torch.fx import Graph, GraphModule, Node


def expression(gm: GraphModule, node: Node) -> tuple[tuple[Node, ...], GraphModule]:
    """``node`` as a module that takes the values of the placeholders, in the order given, and returns its value."""
    needed, queue = {node}, [node]
    while queue:
        for operand in queue.pop().all_input_nodes:
            if operand not in needed:
                needed.add(operand)
                queue.append(operand)
    graph, copies = Graph(), {}
    sources = tuple(n for n in gm.graph.nodes if n in needed and n.op == "placeholder")
    for n in gm.graph.nodes:
        if n in needed:
            copies[n] = graph.node_copy(n, copies.__getitem__)
    graph.output(copies[node])
    return sources, GraphModule(gm, graph)
