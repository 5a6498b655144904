"""Removes what a rewrite replaced or left without a reader."""

from torch.fx import Node

from torchqx.fx_passes.in_place import written


def replace(old: Node, new: Node) -> None:
    """Let ``new``, computed earlier, stand for ``old``."""
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def erase_upwards(node: Node) -> None:
    """Erase ``node``, and the ops above it that nothing reads any more; above it, what writes in place stays."""
    queue = [node]
    while queue:
        dead = queue.pop()
        if dead.users or dead.op not in ("call_function", "call_method"):
            continue
        parents = dead.all_input_nodes
        dead.graph.erase_node(dead)
        queue += [p for p in parents if not p.users and written(p) is None]
