"""Removes nodes that do nothing, so that no later pass has to look through them.

    before   dropout(x, 0.1, False)      x.to(dtype of x)      after   x
"""

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node


def canonicalize(gm: GraphModule) -> GraphModule:
    """Rewrite ``gm`` in place and return it."""
    for node in list(gm.graph.nodes):
        if _evaluation_dropout(node) or _same_dtype(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.op == "call_function" and node.target is torch._C._log_api_usage_once:
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def _evaluation_dropout(node: Node) -> bool:
    if node.op != "call_function" or node.target not in (F.dropout, torch.dropout) or not node.args:
        return False
    training = node.kwargs.get("training", node.kwargs.get("train", node.args[2] if len(node.args) > 2 else True))
    return training is False


def _same_dtype(node: Node) -> bool:
    if node.op != "call_method" or node.target != "to" or node.kwargs or len(node.args) != 2:
        return False
    source = node.args[0].meta.get("example_value") if isinstance(node.args[0], Node) else None
    return isinstance(source, torch.Tensor) and isinstance(node.args[1], torch.dtype) and source.dtype == node.args[1]
