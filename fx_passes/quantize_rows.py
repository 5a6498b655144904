"""A per-token quantizer that reads what a CPU kernel wrote becomes a kernel too.

    before   y = int8_linear(...)                              after   y = int8_linear(...)
             quantize_per_token(y, inv_smooth, shift, ...)             quantize_rows(y, inv_smooth, shift, ...)

There is no producer to fuse it into, and generated code is half as fast: it goes over all rows for their ranges, over
the ranges, and over all rows again, by when the first have left the caches. (1024 x 1536 bfloat16 on two cores, each
called alone: 377 us, 193 here.)
"""

import torch
from torch.fx import GraphModule

from torchqx.fx_passes.erase import replace
from torchqx.fx_passes.writers import kernel_wrote
from torchqx.inductor_kernels import quantize_rows as _quantize_rows  # noqa: F401  registers the operator
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token

QUANTIZE_ROWS = torch.ops.torchqx.quantize_rows.default


def quantize_rows(gm: GraphModule) -> GraphModule:
    """Replace in place; returns ``gm``."""
    for node in list(gm.graph.nodes):
        if node.target is quantize_per_token and kernel_wrote(node.args[0]):
            with gm.graph.inserting_before(node):
                new = gm.graph.call_function(QUANTIZE_ROWS, node.args)
            replace(node, new)
    gm.graph.lint()
    gm.recompile()
    return gm
