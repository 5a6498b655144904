"""Rotary position embeddings in one pass over queries and keys, on CPUs.

    before   y = x * cos + cat((-x[..., h:], x[..., :h]), -1) * sin                      h: half of the width
    after    a, b = x[..., :h], x[..., h:]
             y = cat((a * cos[..., :h] - b * sin[..., :h], b * cos[..., h:] + a * sin[..., h:]), -1)

Inductor writes both parts of a ``cat`` to memory before anything reads them. Here the ``cat`` comes last, so that what
is written is the result. Every product and sum is rounded as before; only how the result lies in memory may differ.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.attention_kernel import ATTENTION
from torchqx.fx_passes.in_place import changing_values, memory_of, written, written_between
from torchqx.fx_passes.sites.ops import argument, fake, last_dim, op_name, same_size

_READS = frozenset({"scaled_dot_product_attention", "cat", "matmul", "index_copy", "reshape", "flatten", "contiguous"})
_VIEWS = frozenset({"getitem", "unsqueeze", "expand", "transpose", "permute"})


def turn_in_one_pass(gm: GraphModule) -> GraphModule:
    """Rewrite in place; returns ``gm``."""
    nodes = list(gm.graph.nodes)
    changing = changing_values(nodes)
    for node in nodes:
        if op_name(node) == "add" and (found := _rotary(node, changing)) is not None:
            _rewrite(node, *found)
    gm.graph.lint()
    gm.recompile()
    return gm


def _rotary(node: Node, changing: set[Node]) -> tuple[Node, Node, Node, int] | None:
    """(x, cos, sin, half of the width) if ``node`` adds the two products, and nothing is written in place."""
    if len(node.args) != 2 or any(op_name(part) != "mul" for part in node.all_input_nodes):
        return None
    if not node.users or not _any_layout_does(node) or not _pure([node, *node.all_input_nodes], changing):
        return None
    for plain, turned in (node.args, node.args[::-1]):
        for half_turn, sin in _both_ways(turned):
            source = _half_turned(half_turn, changing)
            for x, cos in _both_ways(plain):
                if source is not None and x is source[0] and _fits(node, x, cos, sin):
                    return x, cos, sin, source[1]
    return None


def _any_layout_does(node: Node) -> bool:
    """Whether all that reads ``node`` takes it however it lies in memory: ``view`` would not."""
    return all(user.target is ATTENTION or op_name(user) in _READS
               or (op_name(user) in _VIEWS and _any_layout_does(user)) for user in node.users)


def _both_ways(product: Any) -> list[tuple[Node, Node]]:
    a, b = product.args if isinstance(product, Node) and len(product.args) == 2 else (None, None)
    return [(a, b), (b, a)] if isinstance(a, Node) and isinstance(b, Node) else []


def _pure(nodes: Iterable[Node], changing: set[Node]) -> bool:
    """Whether each of the ops makes a value of its own that stays as it is."""
    return all(node not in changing and written(node) is None for node in nodes)


def _half_turned(node: Node, changing: set[Node]) -> tuple[Node, int] | None:
    """(x, h) of cat((-x[..., h:], x[..., :h]), -1)."""
    parts = argument(node, 0, "tensors") if op_name(node) == "cat" else None
    at_the_end = parts is not None and last_dim(node, argument(node, 1, "dim", default=0))
    if not at_the_end or not isinstance(parts, list | tuple) or len(parts) != 2:
        return None
    negated, first = parts
    if op_name(negated) != "neg" or not _pure([node, negated, *node.all_input_nodes], changing):
        return None
    x, width = first.args[0] if first.args else None, fake(node).shape[-1]
    if not isinstance(x, Node) or not isinstance(width, int) or width % 2:
        return None
    half = width // 2
    return (x, half) if _shows(first, x, 0, half) and _shows(negated.args[0], x, half, width) else None


def _shows(view: Any, x: Node, start: int, end: int) -> bool:
    """Whether ``view`` is x[..., start:end]: its memory begins there and its last dimension is that long."""
    if not isinstance(view, Node) or op_name(view) != "getitem" or view.args[0] is not x:
        return False
    part, whole = fake(view), fake(x)
    if part is None or whole is None or part.ndim != whole.ndim or memory_of(view) != memory_of(x):
        return False
    begins = whole.storage_offset() + start * whole.stride(-1)
    sizes = (*whole.shape[:-1], end - start)
    return (part.stride() == whole.stride() and part.storage_offset() == begins
            and all(map(same_size, part.shape, sizes)))


def _fits(node: Node, x: Node, cos: Node, sin: Node) -> bool:
    """Whether the factors have one dtype and the result's width, on a CPU, and nothing is written to meanwhile."""
    values = [fake(part) for part in (node, x, cos, sin)]
    if any(value is None or value.device.type != "cpu" or value.ndim == 0 for value in values):
        return False
    width = values[0].shape[-1]
    alike = len({value.dtype for value in values}) == 1 and all(same_size(v.shape[-1], width) for v in values)
    return alike and not any(written_between(part, part, node) for part in (x, cos, sin))


def _rewrite(node: Node, x: Node, cos: Node, sin: Node, half: int) -> None:
    def call(function: Any, *args: Any) -> Node:
        return node.graph.call_function(function, args)

    low, high = (Ellipsis, slice(None, half)), (Ellipsis, slice(half, None))
    with node.graph.inserting_before(node):
        (a, b), (cos_a, cos_b), (sin_a, sin_b) = (
            [call(operator.getitem, part, half) for half in (low, high)] for part in (x, cos, sin))
        first = call(operator.sub, call(operator.mul, a, cos_a), call(operator.mul, b, sin_a))
        second = call(operator.add, call(operator.mul, b, cos_b), call(operator.mul, a, sin_b))
        new = call(torch.cat, (first, second), -1)
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
    _erase(node, keep={x, cos, sin})


def _erase(node: Node, keep: set[Node]) -> None:
    """Take ``node`` out of the graph, and what nothing else reads between ``keep`` and it."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        if source not in keep and not source.users:
            _erase(source, keep)
