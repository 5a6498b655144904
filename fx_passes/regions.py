"""Where a site's outputs become what Outlier Suppression+ compares: the result of attention, or a gated product.

    x -> {q, k, v} -> views, RoPE, cache ... -> attention          compared: the attention's result
    x -> {gate, up} -> act(gate) * up                              compared: the product

A region is cut out as it stands in the graph, so it needs no knowledge of any architecture: it is run again on
candidate outputs of the site's matmuls, with everything that enters from outside held at the values of one calibration
batch.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from torchqx.fx_passes.in_place import written
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp, LinearSite
from torchqx.fx_passes.sites.ops import is_mapped, op_name

PRODUCTS = (operator.mul, torch.mul, "mul")
CUTS = ("getitem", "narrow", "select", "slice")


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes between a site's matmuls (``inputs``) and the compared node (``output``); ``on`` names what that is."""

    inputs: tuple[Node, ...]
    externals: tuple[Node, ...]
    nodes: tuple[Node, ...]
    output: Node
    on: str

    def bind(self, values: Mapping[Node, Any]) -> Callable[[list[Tensor]], Tensor]:
        """A function of the matmuls' outputs, with ``values`` for the externals."""
        fixed = {node: values[node] for node in self.externals}

        def run(outputs: list[Tensor]) -> Tensor:
            like = {n: n.meta["example_value"].dtype for n in self.inputs if "example_value" in n.meta}
            env = dict(fixed) | {n: y.to(like.get(n, y.dtype)) for n, y in zip(self.inputs, outputs, strict=True)}
            for node in self.nodes:
                args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
                if node.op == "call_method":
                    env[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
                else:
                    env[node] = node.target(*args, **kwargs)
            return env[self.output].float()

        return run


def find_region(site: LinearSite, sites: GraphSites) -> Region | None:
    """The region of ``site``, or None when its loss is on its own outputs."""
    if any(op.form is not Form.LINEAR or _adds_more_than_a_vector(op) for op in site.ops):
        return None
    sources = [op.node for op in site.ops]
    borders = {op.node for other in sites.linears for op in other.ops} | {a.node for a in sites.attentions}
    reached = _forward(sources, borders)
    for attention in sites.attentions:
        if all(n in reached for n in (attention.q, attention.k, attention.v)):
            return _cut(sources, attention.node, set(reached) | set(attention.nodes) | {attention.node}, "attention")
    reads = {other.x for other in sites.linears}
    for node in reached:
        if node in reads and node.target in PRODUCTS and _gates(node, set(sources), reached):
            return _cut(sources, node, reached, "gated product")
    return None


def _adds_more_than_a_vector(op: LinearOp) -> bool:
    """Whether what the op adds to its matmul is a tensor [..., N]: no part of the outputs that a candidate gives."""
    value = None if op.bias is None else op.bias.meta.get("example_value")
    return isinstance(value, Tensor) and value.dim() != 1


def _gates(product: Node, sources: set[Node], reached: Collection[Node]) -> bool:
    """Whether the factors come from different matmuls, or different parts of one; GELU spelled out multiplies too."""
    parts = [_parts(factor, sources, reached) for factor in product.args if isinstance(factor, Node)]
    return len(parts) == 2 and all(parts) and parts[0].isdisjoint(parts[1])


def _parts(value: Node, sources: set[Node], reached: Collection[Node]) -> set[Node]:
    """The matmuls, or the parts cut out of them, that ``value`` is computed from; all else enters from outside."""
    found, queue, seen = set(), [value], set()
    while queue:
        node = queue.pop()
        if node in seen or node not in reached:
            continue
        seen.add(node)
        if node in sources or op_name(node) in CUTS:
            found.add(node)
        else:
            queue += node.all_input_nodes
    return found


def _forward(sources: list[Node], borders: set[Node]) -> dict[Node, None]:
    """Everything computed from ``sources`` without passing through another weighted matmul or attention; in order."""
    reached: dict[Node, None] = dict.fromkeys(sources)
    queue = list(sources)
    while queue:
        for user in queue.pop(0).users:
            if user.op in ("call_function", "call_method") and user not in reached and user not in borders:
                reached[user] = None
                queue.append(user)
    return reached


def _cut(sources: list[Node], output: Node, allowed: Any, on: str) -> Region | None:
    """The nodes of ``allowed`` that ``output`` needs, in graph order; None if they do not run on their own: one writes
    in place, or is inside ``torch.func.vmap``."""
    needed, externals, queue = {output}, {}, [output]
    while queue:
        for parent in queue.pop().all_input_nodes:
            if parent in sources or parent in needed:
                continue
            if parent not in allowed:
                externals[parent] = None
                continue
            needed.add(parent)
            queue.append(parent)
    if any(written(node) is not None or is_mapped(node) for node in needed):
        return None
    ordered = tuple(n for n in output.graph.nodes if n in needed)
    return Region(tuple(sources), tuple(externals), ordered, output, on)
