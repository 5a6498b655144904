"""Rewrites weighted matmuls to quantized ones.

    before   linear(x, W1, b1)      linear(x, W2, b2)
    after    codes = quantize_static(x, mul, add)
             y = int8_linear(codes, packed [W1; W2], scales, [b1 + W1 z; b2 + W2 z])
             y[..., :N1]            y[..., N1:]

The transform is part of the quantizer at the consumer's input (mul and add hold shift, scale, and quantizer in one), so
nothing has to fold for the rewrite to be right, and Inductor fuses it into whatever produced x. Matmuls with the same
transform and quantizer share the codes and run as one. Rotations are explicit:

    codes = quantize_static(hadamard(x / g, signs, block, False), mul, add)
    hadamard(y[..., :N1], output signs, block, True)            where the results are rotated too
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import Parameter

from torchqx.fx_passes import derived as d
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.erase import erase_upwards
from torchqx.fx_passes.lower import HADAMARD, OpStructure, is_simple, matmul, quantize_rows
from torchqx.fx_passes.quantize_scan import ScanRewrite, ScanStructure
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp, ScanSite
from torchqx.rotations import Hadamard
from torchqx.rows import conv_result, conv_rows, left_result, left_rows


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """``module`` takes ``inputs`` in order: placeholders of the original graph, and tensors derived from them."""

    module: GraphModule
    inputs: list[Node | Derived]


def quantize_graph(gm: GraphModule, sites: GraphSites, structures: Mapping[Node, OpStructure],
                   stored: Collection[Node], scans: Mapping[ScanSite, ScanStructure] | None = None) -> QuantizedGraph:
    """A copy of ``gm`` in which each op whose node is in ``structures`` is quantized; ``gm`` stays as it is.

    Args:
        stored: placeholders at which the model holds a storage tensor; whatever else reads them sees float weights.
        scans: the scans and convolutions that are quantized too.
    """
    target = _Target(gm)
    for site in sites.linears:
        for ops in _together([op for op in site.ops if op.node in structures], structures):
            _Rewrite(target, ops, structures).run()
    for scan, structure in (scans or {}).items():
        ScanRewrite(target, scan, structure).run()
    quantized = [op.weight for site in sites.linears for op in site.ops if op.node in structures]
    return target.finish(gm, dict.fromkeys([*quantized, *stored]), set(stored))


def _together(ops: list[LinearOp], structures: Mapping[Node, OpStructure]) -> list[list[LinearOp]]:
    """Runs of ops that can be one matmul: equal structure and result dtype, no bias that the graph computes."""
    def kind(op: LinearOp) -> tuple:
        structure = replace(structures[op.node], output_rotation=None)
        alone = op.form is not Form.LINEAR or not is_simple(structure) or _computed(op.bias)
        return structure, op.x, op.node.meta["example_value"].dtype, op.node if alone else None

    return [list(run) for _, run in groupby(ops, kind)]


def _computed(bias: Node | None) -> bool:
    """Whether a bias is anything but a vector among the model's parameters."""
    value = None if bias is None else bias.meta.get("example_value")
    return bias is not None and not (bias.op == "placeholder" and isinstance(value, Parameter) and value.dim() == 1)


class _Target:
    """The graph being written: a copy of the original, and its growing list of inputs."""

    def __init__(self, gm: GraphModule) -> None:
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.graph.output(self.graph.graph_copy(gm.graph, self.copies))
        for copy in self.copies.values():
            # Parts of a wide matmul, and rows moved back, are not contiguous: what was a view may have to copy now.
            if copy.op == "call_method" and copy.target == "view" and not isinstance(copy.args[1], torch.dtype):
                copy.target = "reshape"
        self.inputs: dict[Node, Node | Derived] = {
            self.copies[n]: n for n in gm.graph.nodes if n.op == "placeholder"}
        self.made: dict[tuple, Node] = {}

    def derived(self, item: Derived, key: tuple = ()) -> Node:
        """The input that ``item`` is; the same one for an equal item, or for an equal ``key``."""
        key = key or (item.build, item.weights, item.others)
        if key not in self.made:
            with self.graph.inserting_after(list(self.inputs)[-1]):
                self.made[key] = self.graph.placeholder(f"{item.build.__name__}_{len(self.made)}")
            self.inputs[self.made[key]] = item
        return self.made[key]

    def finish(self, gm: GraphModule, weights: Collection[Node], stored: set[Node]) -> QuantizedGraph:
        for weight in weights:
            copy = self.copies[weight]
            if copy.users and weight not in stored:
                continue
            if copy.users:
                dense = self.derived(Derived(d.dequantized, (weight,)))
                dense.meta["example_value"] = d.dense_like(weight.meta["example_value"])
                copy.replace_all_uses_with(dense)
            self.graph.erase_node(copy)
            del self.inputs[copy]
        self.graph.lint()
        order = [n for n in self.graph.nodes if n.op == "placeholder"]
        return QuantizedGraph(GraphModule(gm, self.graph), [self.inputs[n] for n in order])


class _Rewrite:
    """Replaces ``ops``, which read one activation alike, by one quantized matmul. (An ``Emitter`` for lowering.)"""

    def __init__(self, target: _Target, ops: list[LinearOp], structures: Mapping[Node, OpStructure]) -> None:
        self.target, self.ops, self.structures = target, ops, structures
        self.structure = structures[ops[0].node]

    def call(self, function: Any, *args: Any) -> Node:
        args = tuple(self.target.copies.get(a, a) if isinstance(a, Node) else a for a in args)
        return self.target.graph.call_function(function, args)

    def derived(self, build: d.Build, *others: Node | None) -> Node:
        return self.target.derived(Derived(build, tuple(op.weight for op in self.ops), others))

    def rotated(self, x: Node, rotation: Hadamard, op: LinearOp, output: bool) -> Node:
        """x R of the op's activation, or x Rᵀ of its result. Equal rotations read one tensor of signs."""
        signs = None
        if rotation.seed is not None:
            matrix = op.layout.to_matrix(torch.empty(op.weight.meta["example_value"].shape, device="meta"))
            length = matrix.shape[-2 if output else -1]
            item = Derived(d.output_signs if output else d.signs, (op.weight,))
            signs = self.target.derived(item, (rotation, length, self.structure.device))
        return self.call(HADAMARD, x, signs, rotation.block, output)

    def run(self) -> None:
        first = self.ops[0]
        with self.target.graph.inserting_before(self.target.copies[first.node]):
            rows = quantize_rows(self, self.structure, self._rows(first))
            result = matmul(self, self.structure, rows, self._bias(), first.node.meta["example_value"].dtype)
            parts = [result] if len(self.ops) == 1 else self._split(result)
            parts = [self._finished(op, part) for op, part in zip(self.ops, parts, strict=True)]
        for op, part in zip(self.ops, parts, strict=True):
            old = self.target.copies[op.node]
            part.meta.update(old.meta)
            old.replace_all_uses_with(part)
            erase_upwards(old)
            self.target.copies[op.node] = part  # what a matmul right behind it reads

    def _rows(self, op: LinearOp) -> Node:
        if op.form is Form.CONV:
            return self.call(conv_rows, op.x, tuple(op.weight.meta["example_value"].shape[2:]))
        return self.call(left_rows, op.x) if op.form is Form.LEFT else self.target.copies[op.x]

    def _finished(self, op: LinearOp, result: Node) -> Node:
        """Rows [..., N] of the op's matmul -> the value that the op had."""
        rotation = self.structures[op.node].output_rotation
        if rotation is not None:
            result = self.rotated(result, rotation, op, output=True)
        if _computed(op.bias):
            result = self.call(Tensor.to, self.call(torch.add, result, op.bias), op.node.meta["example_value"].dtype)
        if op.form in (Form.CONV, Form.LEFT):
            result = self.call(conv_result if op.form is Form.CONV else left_result, result)
        return result

    def _bias(self) -> Node | None:
        own = [None if _computed(op.bias) else op.bias for op in self.ops]
        return self.derived(d.bias, *own) if self.structure.shift or any(own) else None

    def _split(self, result: Node) -> list[Node]:
        widths = [op.node.meta["example_value"].shape[-1] for op in self.ops]
        starts = [sum(widths[:i]) for i in range(len(widths))]
        return [self.call(torch.narrow, result, -1, s, w) for s, w in zip(starts, widths, strict=True)]
