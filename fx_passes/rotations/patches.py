"""Patches of an image as rows: a convolution's channels go last, and rows are what a rotation acts on.

    before   y = conv_result(hadamardᵀ(rows))      y.flatten(2).transpose(1, 2)
    after    hadamardᵀ(rows).flatten(1, -2)
"""

import torch
from torch.fx import Graph, Node

from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.sites.ops import argument, fake, op_name
from torchqx.rows import conv_result


def rows_behind(conv: Node) -> Node | None:
    """The result [B, N, *patches] of a convolution as rows [B, patches, N], where that is all that reads it."""
    node = _only_user(conv)
    if node is not None and op_name(node) == "flatten":
        whole = argument(node, 1, "start_dim", default=0) == 2 and argument(node, 2, "end_dim", default=-1) == -1
        node = _only_user(node) if whole else None
    if node is None or fake(node) is None or fake(node).ndim != 3:
        return None
    dims = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    if op_name(node) in ("transpose", "swapaxes") and all(isinstance(d, int) for d in dims):
        return node if {d % 3 for d in dims} == {1, 2} else None
    return node if op_name(node) == "permute" and node.args[1:] in ((0, 2, 1), ((0, 2, 1),)) else None


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def take_rows(graph: Graph) -> None:
    """Rewrite ``graph`` in place where a convolution's result is rotated."""
    for conv in [n for n in graph.nodes if n.target is conv_result and n.args[0].target is HADAMARD]:
        turned, rows = conv.args[0], rows_behind(conv)
        if rows is None:
            continue
        turned.meta = {"example_value": fake(conv).movedim(1, -1)}
        with graph.inserting_before(rows):
            flat = graph.call_function(torch.flatten, (turned, 1, -2))
        flat.meta = dict(rows.meta)
        rows.replace_all_uses_with(flat)
        while rows is not turned:
            above = rows.args[0]
            graph.erase_node(rows)
            rows = above
