"""A layer norm of what a CPU kernel wrote becomes one with the static quantizer that reads it.

    before   y = layer_norm(x, (K,), w, b)                       after   y, codes = quantize_norm(x, w, b, ...)
             codes = quantize_static(y, mul, add, ...)

There is no producer to fuse the norm into, and generated code goes over all rows three times: for their means, for
their variances, and for the result. Here a row is done with before it leaves the first-level cache. An RMS norm, which
takes one pass less, gains nothing.
"""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.erase import erase_upwards
from torchqx.fx_passes.in_place import written_between
from torchqx.fx_passes.sites.ops import fake, is_mapped, op_name
from torchqx.fx_passes.store_rows import norm_arguments
from torchqx.fx_passes.writers import kernel_wrote
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.inductor_kernels.quantize_norm import QUANTIZE_NORM, is_supported


def quantize_norms(gm: GraphModule) -> GraphModule:
    """Replace in place; returns ``gm``."""
    for node in list(gm.graph.nodes):
        if op_name(node) != "layer_norm" or (quantizer := _quantizer(node)) is None or is_mapped(node):
            continue
        found = norm_arguments(node)
        if found is not None and _is_covered(*found):
            _replace(node, found, quantizer)
    gm.graph.lint()
    gm.recompile()
    return gm


def _quantizer(node: Node) -> Node | None:
    """The first static quantizer that reads ``node`` as it is, with parameters that are there before."""
    for user in node.users:
        parameters = [n for n in user.all_input_nodes if n is not node]
        if user.target is quantize_static and all(n.op == "placeholder" for n in parameters):
            return None if written_between(node, node, user) else user
    return None


def _is_covered(x: Node, weight: Any, bias: Any, eps: float, dtype: torch.dtype) -> bool:
    """Not where autocast gives the result another dtype."""
    return kernel_wrote(x) and is_supported(fake(x).device) and dtype == fake(x).dtype


def _replace(node: Node, found: tuple, quantizer: Node) -> None:
    *operands, _ = found
    kept = len(node.users) > 1
    call = node.graph.call_function
    with node.graph.inserting_before(node):
        both = call(QUANTIZE_NORM, (*operands, *quantizer.args[1:], kept))
        codes = call(operator.getitem, (both, 1))
        codes.meta.update(quantizer.meta)
        if kept:
            y = call(operator.getitem, (both, 0))
            y.meta.update(node.meta)
            node.replace_all_uses_with(y, delete_user_cb=lambda user: user is not quantizer)
    quantizer.replace_all_uses_with(codes)
    erase_upwards(quantizer)
