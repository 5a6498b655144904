"""Attention as a CUDA device computes it: one library call. Without a device torch would take its formula apart.

``aten._scaled_dot_product_efficient_attention`` stands for all of CUDA's kernels (a device may choose another by dtype
and mask); for the interpreter it is computed on the CPU, in the layout that the library gives its result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

_KERNEL = torch.ops.aten._scaled_dot_product_efficient_attention


def call_library_attention(gm: GraphModule) -> None:
    """Replace, in place, each ``F.scaled_dot_product_attention`` of a graph by the library's call."""
    for module in (m for m in gm.modules() if isinstance(m, GraphModule)):
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target is F.scaled_dot_product_attention:
                node.target = library_attention
        module.recompile()


def library_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                      dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                      enable_gqa: bool = False) -> Tensor:
    """:func:`torch.nn.functional.scaled_dot_product_attention` for [B, H, T, D], by the library's call."""
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return _KERNEL(query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]


def register_on_cpu() -> None:
    """Give the library's call to the CPU; for the interpreting process."""
    torch.library.impl("aten::_scaled_dot_product_efficient_attention", "CPU", _on_cpu)


def _on_cpu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, logsumexp: bool, dropout: float = 0.0,
            causal: bool = False, *, scale: float | None = None) -> tuple[Tensor, ...]:
    result: Any = F.scaled_dot_product_attention(query, key, value, bias, dropout, causal, scale=scale)
    rows = result.transpose(1, 2).contiguous().transpose(1, 2)  # [B, T, H, D] in memory
    unused = torch.zeros((), dtype=torch.int64)
    return rows, query.new_zeros(query.shape[0], query.shape[1], 0), unused, unused
