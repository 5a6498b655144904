"""Proof that folding keeps a graph's meaning: the graph before and the graph after side by side, on real inputs.

Ops that are in both graphs with plain operands run once, on the graph before, for both. What was rewritten between them
runs in float64 in both graphs, and must hand the same operands to the next common op. So the graphs are equal by
induction over the common ops, and no integer kernel has to exist in float64.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_map_only

from torchqx.fx_passes.in_place import written
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.prove import relative_error
from torchqx.fx_passes.sites.norms import default_eps
from torchqx.fx_passes.sites.ops import argument, fake, op_name

_SHORT = (torch.float32, torch.float16, torch.bfloat16)
_TO_DOUBLE = {"float": "double", "half": "double", "bfloat16": "double"}


def difference(before: GraphModule, after: GraphModule, pairs: Mapping[Node, Node], rewritten: Collection[Node],
               inputs: Sequence[Any]) -> float:
    """The largest relative difference of what common ops, and the output, read in the two graphs.

    Args:
        pairs: node of ``before`` -> the node of ``after`` that it was copied to.
        rewritten: nodes of ``after`` that compute something else than before.
        inputs: for the placeholders.
    """
    alive = set(after.graph.nodes)
    common = {b: a for b, a in pairs.items() if a in alive and a not in rewritten and b.target == a.target
              and b.target is not HADAMARD}
    first, second = _Side(before, inputs), _Side(after, inputs)
    following = iter(after.graph.nodes)
    worst = 0.0
    with torch.no_grad():
        for node in before.graph.nodes:
            if node not in common and node.op != "output":
                first.run_in_double(node)
                continue
            other = _advance(second, following, common.get(node), node.op)
            if node.op == "placeholder":
                first.keep(node, first.given.pop(0))
                second.keep(other, second.given.pop(0))
                continue
            worst = max(worst, _compare(first.operands(node), second.operands(other)))
            if node.op != "output":
                value = first.run_as_it_is(node)
                first.keep(node, value)
                second.keep(other, value)
            first.forget(node)
            second.forget(other)
    return worst


def _advance(side: "_Side", following: Iterator[Node], goal: Node | None, op: str) -> Node:
    """Run what stands before ``goal`` (before the output, where that is the goal), which is returned."""
    for node in following:
        if node is goal or node.op == op == "output":
            return node
        side.run_in_double(node)
    raise AssertionError("the common ops stand in another order")


def _compare(before: Any, after: Any) -> float:
    worst = 0.0
    for x, y in zip(tree_flatten(before)[0], tree_flatten(after)[0], strict=True):
        if not isinstance(x, Tensor) or x is y or not x.numel():
            continue
        if x.shape != y.shape:
            return float("inf")
        error = relative_error(y, x)
        worst = max(worst, error if error == error else float("inf"))
    return worst


class _Side:
    """One of the graphs while it runs. Values of common ops have their own type, all others are float64."""

    def __init__(self, gm: GraphModule, inputs: Sequence[Any]) -> None:
        self.gm, self.given = gm, list(inputs)
        self.values: dict[Node, Any] = {}
        self.types: dict[Node, torch.dtype | None] = {}
        self.unread = Counter(user for node in gm.graph.nodes for user in node.all_input_nodes)

    def keep(self, node: Node, value: Any) -> None:
        self.values[node] = value

    def operands(self, node: Node) -> tuple[Any, ...]:
        return map_arg((node.args, dict(node.kwargs)), self.values.__getitem__)

    def run_as_it_is(self, node: Node) -> Any:
        return self._call(node, *map_arg((node.args, dict(node.kwargs)), self._own_type), node.target)

    def run_in_double(self, node: Node) -> None:
        copy = written(node) is not None  # what both graphs read stays as it is
        args, kwargs = tree_map_only(Tensor, lambda value: _double(value, copy), self.operands(node))
        args, kwargs = tree_map_only(torch.dtype, lambda t: torch.float64 if t in _SHORT else t, (args, kwargs))
        if op_name(node) == "rms_norm" and argument(node, 3, "eps") is None:
            args, kwargs = args[:3], kwargs | {"eps": default_eps(self._type(node.args[0]))}
        target = _TO_DOUBLE.get(node.target, node.target) if node.op == "call_method" else node.target
        value = self._call(node, args, kwargs, target)
        self.values[node] = value
        known = [fake(node).dtype] if fake(node) is not None else map(self._type, node.all_input_nodes)
        self.types[node] = next((t for t in known if t is not None), None)
        self.forget(node)

    def forget(self, node: Node) -> None:
        """Let go of values that nothing reads after ``node``."""
        for operand in node.all_input_nodes:
            self.unread[operand] -= 1
            if not self.unread[operand]:
                self.values.pop(operand, None)

    def _type(self, node: Node) -> torch.dtype | None:
        value = self.values[node]
        return self.types[node] if node in self.types else value.dtype if isinstance(value, Tensor) else None

    def _own_type(self, node: Node) -> Any:
        value, own = self.values[node], self._type(node)
        return value.to(own) if isinstance(value, Tensor) and own is not None else value

    def _call(self, node: Node, args: Any, kwargs: Any, target: Any) -> Any:
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "get_attr":
            return self.gm.get_parameter(target) if target in dict(self.gm.named_parameters()) else \
                self.gm.get_buffer(target)
        assert node.op == "call_function", f"{node.op} in a graph of a compiler backend"
        return target(*args, **kwargs)


def _double(value: Tensor, copy: bool) -> Tensor:
    if value.is_floating_point():
        return value.to(torch.float64, copy=copy)
    return value.clone() if copy else value
