"""Norms on CPUs with the divisor of each row computed once, not once per vector of the row.

    before   y = x * rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)            y = F.layer_norm(x, (K,), w, b, eps)
    after    y = x * stored(rsqrt(...))                                      y = norms.layer_norm(x, w, b, eps, dtype)
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.erase import replace
from torchqx.fx_passes.in_place import written
from torchqx.fx_passes.sites.norms import default_eps
from torchqx.fx_passes.sites.ops import argument, fake, is_mapped, op_name, same_size
from torchqx.fx_passes.stored import store
from torchqx.inductor_kernels import norms

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def store_rows(gm: GraphModule) -> GraphModule:
    """Rewrite in place; returns ``gm``."""
    for node in list(gm.graph.nodes):
        value, name = fake(node), op_name(node)
        if value is None or value.device.type != "cpu" or value.ndim == 0 or is_mapped(node):
            continue
        if name == "rsqrt" and written(node) is None and same_size(value.shape[-1], 1):
            store(node)
        elif name in ("layer_norm", "rms_norm") and (found := norm_arguments(node)) is not None:
            with gm.graph.inserting_before(node):
                new = gm.graph.call_function(getattr(norms, name), found)
            replace(node, new)
    gm.graph.lint()
    gm.recompile()
    return gm


def norm_arguments(node: Node) -> tuple[Any, ...] | None:
    """x, weight, of a layer norm the bias, eps and dtype: the arguments of the norm's plain form in ``norms``, if it is
    over the last dimension."""
    x, shape = argument(node, 0, "input"), argument(node, 1, "normalized_shape")
    sizes = [shape] if isinstance(shape, int) else shape
    if fake(x) is None or fake(x).dtype not in _DTYPES or not isinstance(sizes, list | tuple) or len(sizes) != 1:
        return None
    dtype, weight = fake(node).dtype, argument(node, 2, "weight")
    if op_name(node) == "layer_norm":
        return x, weight, argument(node, 3, "bias"), argument(node, 4, "eps", default=1e-5), dtype
    eps = argument(node, 3, "eps")
    return x, weight, default_eps(fake(x).dtype) if eps is None else eps, dtype
