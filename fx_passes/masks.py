"""What an attention mask says, before it is spread over queries that all see the same keys.

    before   (index >= 0) & keys [B, 1, 1, T]     [B, 1, S, T]         after   keys [B, 1, 1, T]

transformers joins conditions that hold everywhere, one for each query and key. The kernel broadcasts by itself, which
spares S · T numbers in every call.
"""

import torch
from torch.fx import Node

from torchqx.fx_passes.constants import expression
from torchqx.fx_passes.in_place import changing_values, written_between
from torchqx.fx_passes.sites.ops import fake, op_name, same_size

# Nothing here is random.
_SURE = frozenset({"arange", "ones", "new_ones", "full", "new_full", "add", "sub", "ge", "gt", "le", "lt", "eq", "ne",
                   "and", "or", "not", "getitem", "unsqueeze", "view", "reshape", "expand", "to", "bool"})


def before_spread(mask: Node, reader: Node) -> Node:
    """A mask of the same rank, keys, and dtype, that broadcasts to what ``mask`` is where ``reader`` stands."""
    while (source := _source(mask, reader)) is not None:
        mask = source
    return mask


def _source(mask: Node, reader: Node) -> Node | None:
    name = op_name(mask)
    if name == "expand":
        candidates = [mask.args[0]]
    elif name == "and" and len(mask.args) == 2 and fake(mask).dtype == torch.bool:
        candidates = [one for one, other in (mask.args, mask.args[::-1]) if _holds_everywhere(other)]
    else:
        candidates = []
    changed = any(written_between(node, node, reader) for node in (mask, *candidates))
    return next((one for one in candidates if _alike(one, mask)), None) if not changed else None


def _alike(one: Node, other: Node) -> bool:
    a, b = fake(one), fake(other)
    return a is not None and a.ndim == b.ndim and a.dtype == b.dtype and same_size(a.shape[-1], b.shape[-1])


def _holds_everywhere(condition: Node) -> bool:
    """Whether a condition on the queries, and on no input, is always true."""
    value = fake(condition)
    if value is None or value.dtype != torch.bool or value.ndim == 0 or not same_size(value.shape[-1], 1):
        return False
    changing, needed, open_ = changing_values(condition.graph.nodes), set(), [condition]
    while open_:
        node = open_.pop()
        if op_name(node) not in _SURE or node in changing:
            return False
        open_ += [parent for parent in node.all_input_nodes if parent not in needed]
        needed.update(node.all_input_nodes)
    return bool(expression(condition)[1]().all())
