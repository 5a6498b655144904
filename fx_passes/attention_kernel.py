"""Fused attention on the CPU -> our kernel, which also quantizes its result for the one matmul that reads it.

    before   k4 = k[:, :, None].expand(...).reshape(...)      (likewise v4; or enable_gqa=True)
             y = scaled_dot_product_attention(q, k4, v4, attn_mask=mask)
             quantize_static(y.transpose(1, 2).reshape(b, s, -1), mul, add, qmin, qmax)
    after    y = torchqx.attention(q, k, v, mask, 1 / sqrt(d), False, mul, add, qmin, qmax)
             y.transpose(1, 2).reshape(b, s, -1)

A call that the kernel does not cover, or where it is not the faster one, stays as it is.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from torchqx.fx_passes.erase import replace
from torchqx.fx_passes.in_place import written_between
from torchqx.fx_passes.masks import before_spread
from torchqx.fx_passes.sites.ops import argument, fake, op_name, same_shape, same_size
from torchqx.inductor_kernels.attention.cpu import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static

ATTENTION = torch.ops.torchqx.attention.default
OUT_MUL = 6  # position of the multiplier among the operator's arguments; addend, lowest and highest code follow
WIDEST_HEAD = 256
_WHOLE = slice(None)
_SPREAD = ((_WHOLE, _WHOLE, None, _WHOLE, _WHOLE), (_WHOLE, _WHOLE, None))


def use_attention_kernel(gm: GraphModule) -> GraphModule:
    """Replace and fuse in place; returns ``gm``. Sizes may be symbolic."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target is F.scaled_dot_product_attention and _is_covered(node):
            q, k, v = _operands(node)
            shared = _before_repeat(k, node), _before_repeat(v, node)
            if same_size(fake(shared[0]).shape[1], fake(shared[1]).shape[1]):
                k, v = shared
            rows = fake(q).shape[2] * (fake(q).shape[1] // fake(k).shape[1])
            if pays(fake(q).dtype, rows):
                _fuse_quantizer(_replace(node, q, k, v))
    gm.graph.lint()
    gm.recompile()
    return gm


def pays(dtype: torch.dtype, rows: Any) -> bool:
    """Whether the kernel is faster than torch's, for ``rows`` queries that share one head of keys and values.

    Times faster on one core with AVX512-BF16 (heads of 32 to 128, 49 to 8192 keys):

    | rows | float32 | bfloat16 |
    |---|---|---|
    | 1 | 0.8 to 0.9 | 9 to 11 |
    | 2 to 4 | 1.2 to 3.0 | 2.8 to 55 |
    | more | 1.2 to 2.4 | 2.5 to 4.8 |

    With AMX, torch multiplies bfloat16 on tiles, which this kernel does not.
    """
    if dtype == torch.bfloat16:
        return not torch.cpu._is_amx_tile_supported()
    return statically_known_true(rows > 1)


def _operands(node: Node) -> list[Any]:
    return [argument(node, i, name) for i, name in enumerate(("query", "key", "value"))]


def _is_covered(node: Node) -> bool:
    """Whether the kernel computes what ``node`` does."""
    values = [fake(operand) for operand in _operands(node)]
    if any(value is None or value.ndim != 4 for value in values):
        return False
    q, k, v = values
    if not isinstance(q.shape[3], int) or q.shape[3] % 8 or q.shape[3] > WIDEST_HEAD:
        return False
    if not is_supported(q.device, q.dtype) or k.dtype != q.dtype or v.dtype != q.dtype:
        return False
    pairs = ((k.shape[0], q.shape[0]), (k.shape[3], q.shape[3]), *zip(k.shape, v.shape, strict=True))
    fits = all(same_size(a, b) for a, b in pairs)
    heads, kv_heads = q.shape[1], k.shape[1]
    if not fits or not isinstance(heads, int) or not isinstance(kv_heads, int) or not kv_heads or heads % kv_heads:
        return False
    dropout, causal = argument(node, 4, "dropout_p", default=0.0), argument(node, 5, "is_causal", default=False)
    scale, grouped = argument(node, 6, "scale"), argument(node, 7, "enable_gqa", default=False)
    if not isinstance(causal, bool) or not (grouped is True or heads == kv_heads):
        return False
    if isinstance(dropout, Node) or dropout != 0:
        return False
    if scale is not None and not (isinstance(scale, int | float) and scale > 0):
        return False
    mask = argument(node, 3, "attn_mask")
    return mask is None or (not causal and _mask_is_covered(mask, q.dtype, (*q.shape[:3], k.shape[2])))


def _mask_is_covered(mask: Any, dtype: torch.dtype, sizes: tuple) -> bool:
    """Whether a mask broadcasts to ``sizes`` [B, H, S, T], the last of which it must have, in a dtype that is read."""
    value = fake(mask)
    if value is None or not 1 <= value.ndim <= 4 or value.dtype not in (torch.bool, torch.float32, dtype):
        return False
    pairs = zip(value.shape, sizes[-value.ndim :], strict=True)
    return same_size(value.shape[-1], sizes[-1]) and all(same_size(m, 1) or same_size(m, s) for m, s in pairs)


def _before_repeat(node: Node, reader: Node) -> Node:
    """Keys or values before each head was repeated for the queries that share it, if that is what ``node`` does."""
    source = None
    name = op_name(node)
    if name == "repeat_interleave":
        repeats, dim = argument(node, 1, "repeats"), argument(node, 2, "dim")
        source = argument(node, 0, "input", "self") if isinstance(repeats, int) and dim in (1, -3) else None
    elif name in ("reshape", "view", "flatten") and op_name(node.args[0]) == "expand":
        source = _before_grouping(node, node.args[0])
    if fake(source) is None or fake(source).ndim != 4 or written_between(source, source, reader):
        return node
    return source


def _before_grouping(reshaped: Node, expanded: Node) -> Node | None:
    """[B, Hk, T, D] of [B, Hk, None, T, D] -> expand [B, Hk, G, T, D] -> reshape [B, Hk G, T, D]."""
    spread = expanded.args[0]
    unsqueezed = op_name(spread) == "unsqueeze" and argument(spread, 1, "dim") in (2, -3)
    indexed = spread.target is operator.getitem and spread.args[1] in _SPREAD
    if not (unsqueezed or indexed):
        return None
    source = spread.args[0]
    before, middle, after = fake(source), fake(expanded), fake(reshaped)
    if before is None or middle is None or after is None or (before.ndim, middle.ndim, after.ndim) != (4, 5, 4):
        return None
    wanted = (before.shape[0], before.shape[1], middle.shape[2], before.shape[2], before.shape[3])
    merged = (before.shape[0], before.shape[1] * middle.shape[2], before.shape[2], before.shape[3])
    return source if all(map(same_size, middle.shape, wanted)) and all(map(same_size, after.shape, merged)) else None


def _replace(node: Node, q: Node, k: Node, v: Node) -> Node:
    mask, scale = argument(node, 3, "attn_mask"), argument(node, 6, "scale")
    scale = fake(q).shape[3] ** -0.5 if scale is None else float(scale)
    old, call = _operands(node), node.graph.call_function
    with node.graph.inserting_before(node):
        if mask is not None:
            mask = before_spread(mask, node)
            for _ in range(4 - fake(mask).ndim):
                value = fake(mask).unsqueeze(0)
                mask = call(torch.unsqueeze, (mask, 0))
                mask.meta["example_value"] = value
        causal = argument(node, 5, "is_causal", default=False)
        new = call(ATTENTION, (q, k, v, mask, scale, causal, None, None, 0, 255))
    replace(node, new)
    for repeated, source in zip(old[1:], (k, v), strict=True):
        while repeated is not source and not repeated.users:
            repeated, unread = repeated.args[0], repeated
            node.graph.erase_node(unread)
    return new


def _fuse_quantizer(node: Node) -> None:
    """Quantize in the kernel if the result's one reader, past the move of the heads into the rows, does that."""
    heads, width = fake(node).shape[1], fake(node).shape[3]
    passed, swapped = [node], False
    while True:
        user = next(iter(passed[-1].users)) if len(passed[-1].users) == 1 else None
        if user is None or user.args[:1] != (passed[-1],):
            return
        if user.target is quantize_static:
            break
        moves = not swapped and _swaps_heads_and_rows(user)
        regroups = op_name(user) in ("contiguous", "reshape", "view", "flatten")
        if fake(user) is None or not (moves or (regroups and (swapped or same_shape(user, node)))):
            return
        passed.append(user)
        swapped |= moves
    rows, multiplier, addend, qmin, qmax = user.args
    if not swapped or qmin < 0 or not same_size(fake(rows).shape[-1], heads * width):
        return
    node.args = (*node.args[:OUT_MUL], multiplier, addend, qmin, qmax)
    for part in passed:
        part.meta.pop("example_value")  # these are codes now
    user.replace_all_uses_with(rows)
    user.graph.erase_node(user)


def _swaps_heads_and_rows(node: Node) -> bool:
    if op_name(node) in ("transpose", "swapaxes"):
        return {argument(node, 1, "dim0") % 4, argument(node, 2, "dim1") % 4} == {1, 2}
    order = node.args[1:] if len(node.args) > 2 else argument(node, 1, "dims")
    return op_name(node) == "permute" and tuple(order) == (0, 2, 1, 3)
