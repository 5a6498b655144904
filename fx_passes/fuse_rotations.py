"""A rotation that only a quantizer reads becomes one kernel with it.

    before   r = hadamard(x, signs, block, False)      after   hadamard_quantize_static(x, signs, block, mul, add, ...)
             quantize_static(r, mul, add, ...)
"""

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.lower import HADAMARD
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token, quantize_static

FUSED = {quantize_static: torch.ops.torchqx.hadamard_quantize_static.default,
         quantize_per_token: torch.ops.torchqx.hadamard_quantize_per_token.default}


def fuse_rotations(gm: GraphModule) -> GraphModule:
    """Fuse in place; returns ``gm``."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target is HADAMARD:
            _fuse(node)
    gm.graph.lint()
    gm.recompile()
    return gm


def _fuse(node: Node) -> None:
    x, signs, block, transpose = node.args
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if transpose or user is None or user.target not in FUSED or user.args[0] is not node:
        return
    with node.graph.inserting_before(user):
        new = node.graph.call_function(FUSED[user.target], (x, signs, block, *user.args[1:]))
    user.replace_all_uses_with(new)
    node.graph.erase_node(user)
    node.graph.erase_node(node)
