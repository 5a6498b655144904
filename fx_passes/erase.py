"""Removes what a rewrite left without a reader."""

from torch.fx import Node

from torchqx.fx_passes.in_place import written


def erase_upwards(node: Node) -> None:
    """Erase ``node``, and the ops above it that nothing reads any more; above it, what writes in place stays."""
    queue = [node]
    while queue:
        dead = queue.pop()
        kept = dead.users or dead.op not in ("call_function", "call_method")
        if kept or (dead is not node and written(dead) is not None):
            continue
        parents = dead.all_input_nodes
        dead.graph.erase_node(dead)
        queue += [p for p in parents if not p.users]
