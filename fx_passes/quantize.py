"""Rewrites weighted matmuls to quantized ones.

    before   linear(x, W, b)
    after    codes = quantize_static(x, mul, add)            shared by every op with the same transform and quantizer
             int8_linear(codes, packed W, scales, b + W z)

The transform is part of the quantizer at the consumer's input (mul and add hold shift, scale, and quantizer in one), so
nothing has to fold for the rewrite to be right, and Inductor fuses it into whatever produced x.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torchqx.fx_passes import derived as d
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.lower import OpStructure, matmul, quantize_rows
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp

from torchqx.rows import conv_result, conv_rows, left_result, left_rows


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """``module`` takes ``inputs`` in order: placeholders of the original graph, and tensors derived from them."""

    module: GraphModule
    inputs: list[Node | Derived]


def quantize_graph(gm: GraphModule, sites: GraphSites, structures: Mapping[Node, OpStructure],
                   stored: Collection[Node]) -> QuantizedGraph:
    """A copy of ``gm`` in which each op whose node is in ``structures`` is quantized; ``gm`` stays as it is.

    Args:
        stored: placeholders at which the model holds a storage tensor; whatever else reads them sees float weights.
    """
    rewriter = _Rewriter(gm)
    for site in sites.linears:
        for op in site.ops:
            if op.node in structures:
                rewriter.rewrite(op, structures[op.node])
    quantized = [op.weight for site in sites.linears for op in site.ops if op.node in structures]
    return rewriter.finish(gm, dict.fromkeys([*quantized, *stored]), set(stored))


class _Rewriter:
    def __init__(self, gm: GraphModule) -> None:
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        output = self.graph.graph_copy(gm.graph, self.copies)
        self.graph.output(output)
        self.inputs: dict[Node, Node | Derived] = {
            self.copies[n]: n for n in gm.graph.nodes if n.op == "placeholder"}
        self.made: dict[tuple, Node] = {}
        self.rows: dict[tuple, tuple[Node, Any, Any]] = {}

    def call(self, target: Any, *args: Any) -> Node:
        args = tuple(self.copies.get(a, a) if isinstance(a, Node) else a for a in args)
        return self.graph.call_function(target, args)

    def derived(self, op: LinearOp, build: Any, *more: Node) -> Node:
        sources = (op.weight, *more)
        key = (build, *sources)
        if key not in self.made:
            with self.graph.inserting_after(list(self.inputs)[-1]):
                node = self.graph.placeholder(f"{build.__name__}_{len(self.made)}")
            self.made[key] = node
            self.inputs[node] = Derived(build.__name__, sources, build)
        return self.made[key]

    def rewrite(self, op: LinearOp, structure: OpStructure) -> None:
        old = self.copies[op.node]
        with self.graph.inserting_before(old):
            rows = self._quantized_rows(op, structure)
            bias, late_bias = self._bias(op, structure)
            result = matmul(self, op, structure, rows, bias, op.node.meta["example_value"].dtype)
            if late_bias is not None:
                result = self.call(torch.add, result, late_bias)
            if op.form in (Form.CONV, Form.LEFT):
                result = self.call(conv_result if op.form is Form.CONV else left_result, result)
        result.meta.update(old.meta)
        old.replace_all_uses_with(result)
        self._erase_upwards(old)

    def _quantized_rows(self, op: LinearOp, structure: OpStructure) -> tuple[Node, Any, Any]:
        kernel = tuple(op.weight.meta["example_value"].shape[2:]) if op.form is Form.CONV else ()
        key = (op.x, op.form, kernel, structure.sharing, structure.activation)
        if key not in self.rows:
            rows = self.copies[op.x]
            if op.form is Form.CONV:
                rows = self.call(conv_rows, rows, kernel)
            elif op.form is Form.LEFT:
                rows = self.call(left_rows, rows)
            self.rows[key] = quantize_rows(self, op, structure, rows)
        return self.rows[key]

    def _bias(self, op: LinearOp, structure: OpStructure) -> tuple[Node | None, Node | None]:
        """The bias that goes into the kernel, and one that is computed in the graph and is added after it."""
        if op.bias is not None and op.bias.op == "placeholder" and isinstance(
                op.bias.meta.get("example_value"), torch.Tensor) and op.bias.meta["example_value"].dim() == 1:
            return self.derived(op, d.bias, op.bias), None
        own = self.derived(op, d.bias) if structure.shift else None
        return own, op.bias

    def _erase_upwards(self, node: Node) -> None:
        """Erase ``node``, and the views above it that nothing reads any more."""
        queue = [node]
        while queue:
            dead = queue.pop()
            if dead.users or dead.op not in ("call_function", "call_method"):
                continue
            parents = dead.all_input_nodes
            self.graph.erase_node(dead)
            queue += [p for p in parents if not p.users]

    def finish(self, gm: GraphModule, weights: Iterable[Node], stored: set[Node]) -> QuantizedGraph:
        for weight in weights:
            copy = self.copies[weight]
            if copy.users and weight not in stored:
                continue
            if copy.users:
                with self.graph.inserting_after(list(self.inputs)[-1]):
                    node = self.graph.placeholder(f"dequantized_{weight.name}")
                self.inputs[node] = Derived("dequantized", (weight,), d.dequantized)
                copy.replace_all_uses_with(node)
            self.graph.erase_node(copy)
            del self.inputs[copy]
        self.graph.lint()
        order = [n for n in self.graph.nodes if n.op == "placeholder"]
        return QuantizedGraph(GraphModule(gm, self.graph), [self.inputs[n] for n in order])
