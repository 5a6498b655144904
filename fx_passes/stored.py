"""Marks a node's value in a graph as written once and read from there."""

from torch.fx import Node

from torchqx.inductor_kernels.stored import STORED


def store(node: Node) -> None:
    """Put the mark behind ``node``, in front of all that reads it."""
    with node.graph.inserting_after(node):
        stored = node.graph.call_function(STORED, (node,))
    stored.meta.update(node.meta)
    node.replace_all_uses_with(stored, delete_user_cb=lambda user: user is not stored)
