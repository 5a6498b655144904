"""Where an operand comes from: a parameter seen through views, or values computed from parameters alone.

How a chain of views turns a parameter into an operand is not worked out case by case: the chain is replayed on a meta
tensor, and shape, strides and offset of the result say which element of the parameter lies where.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.ops import fake, is_cast, op_name
from torchqx.layouts import WeightLayout

_VIEWS = frozenset({
    "t", "T", "mT", "adjoint", "transpose", "swapaxes", "swapdims", "permute", "movedim", "view", "reshape",
    "flatten", "unflatten", "squeeze", "unsqueeze", "getitem", "select", "narrow", "chunk", "split", "unbind",
    "tensor_split", "expand", "expand_as", "as_strided",
})


def parameter_nodes(gm: GraphModule, example_inputs: list[Any]) -> dict[Node, nn.Parameter]:
    """Placeholder -> the Parameter that Dynamo passes for it (tensor subclasses included); buffers are left out."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    assert len(placeholders) == len(example_inputs), "example inputs do not belong to this graph"
    return {
        node: value
        for node, value in zip(placeholders, example_inputs, strict=True)
        if isinstance(value, nn.Parameter)
    }


def placeholder_parameters(gm: GraphModule) -> dict[Node, Tensor]:
    """The parameters as the graph itself tells them apart: their fake values are Parameters."""
    found = {}
    for node in gm.graph.nodes:
        value = fake(node)
        if node.op == "placeholder" and (node.type is nn.Parameter or isinstance(value, nn.Parameter)):
            found[node] = value
    return found


@dataclass(frozen=True)
class ParameterView:
    """An operand that shows a parameter. ``view`` is a meta tensor over a contiguous parameter at offset 0, without
    the dimensions of size 1 in front and those that ``expand`` repeats; None where the views cannot be followed."""

    weight: Node
    shape: tuple[int, ...]
    view: Tensor | None

    def layout(self, matrix: Tensor, candidates: tuple[WeightLayout, ...]) -> WeightLayout | None:
        """The layout whose ``to_matrix`` shows the parameter exactly as ``matrix`` ([N, K] or [E, N, K]) does."""
        if len(self.shape) < 2:
            return None
        parameter = torch.empty(self.shape, device="meta")
        return next((layout for layout in candidates if _same_elements(layout.to_matrix(parameter), matrix)), None)

    def refusal(self) -> str:
        """Why no layout fits."""
        if self.view is None:
            return "the weight's views depend on values that are known only at run time"
        if self.view.numel() != torch.Size(self.shape).numel():
            return "only a slice of the parameter is read here"
        if self.view.ndim > 2:
            return "a batch of matrices, one per batch entry, without expert offsets"
        if self.view.ndim < 2:
            return "the parameter is a vector"
        return "the parameter is reshaped between its storage and the matmul"


def _same_elements(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.storage_offset() != b.storage_offset():
        return False
    return all(x == y for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True) if size > 1)


class Provenance:
    """Answers for one graph: is this operand a parameter's view, or computed from parameters alone?"""

    def __init__(self, gm: GraphModule, parameters: Mapping[Node, Tensor]) -> None:
        self.parameters = parameters
        self._derived: set[Node] = set(parameters)
        for node in gm.graph.nodes:
            inputs = node.all_input_nodes
            if node.op.startswith("call") and inputs and all(operand in self._derived for operand in inputs):
                self._derived.add(node)

    def source(self, operand: Any) -> Node | None:
        """The parameter placeholder that ``operand`` is a view or cast of."""
        while isinstance(operand, Node) and operand not in self.parameters:
            if not (op_name(operand) in _VIEWS or is_cast(operand)) or not operand.args:
                return None
            operand = operand.args[0]
        return operand if isinstance(operand, Node) else None

    def is_derived(self, operand: Any) -> bool:
        """Whether ``operand`` depends on parameters and constants only."""
        return operand in self._derived

    def view(self, operand: Any) -> ParameterView | None:
        """The view of a parameter that ``operand`` is, or None."""
        weight = self.source(operand)
        if weight is None:
            return None
        shape = tuple(self.parameters[weight].shape)
        chain: list[Node] = []
        node = operand
        while node is not weight:
            chain.append(node)
            node = node.args[0]
        shown: Any = torch.empty(shape, device="meta")
        try:
            for step in reversed(chain):
                shown = _replay(step, shown)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return ParameterView(weight, shape, None)
        return ParameterView(weight, shape, _without_repeats(shown) if isinstance(shown, Tensor) else None)


def _replay(step: Node, shown: Any) -> Any:
    name = op_name(step)
    if is_cast(step) or name in ("expand", "expand_as"):
        return shown
    arguments = step.args[1:]
    if name == "getitem":
        return shown[arguments[0]]
    if name in ("T", "mT"):
        return getattr(shown, name)
    method = step.target if step.op == "call_method" else name
    return getattr(shown, str(method))(*arguments, **step.kwargs)


def _without_repeats(shown: Tensor) -> Tensor:
    while shown.ndim > 2 and shown.shape[0] == 1:
        shown = shown[0]
    return shown
