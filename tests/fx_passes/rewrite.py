"""Modules quantized and rewritten by the passes alone, without the backend around them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import torchqx
from tests.capture import capture_one
from torchqx.fx_passes.canonicalize import canonicalize
from torchqx.fx_passes.fuse_epilogue import fuse_epilogues
from torchqx.fx_passes.fuse_rotations import fuse_rotations
from torchqx.fx_passes.gated import fuse_gates
from torchqx.fx_passes.quantize import quantize_graph
from torchqx.fx_passes.sites import GraphSites, find_sites
from torchqx.runner import structures_of

STATIC = torchqx.OutlierSuppressionPlusConfig(activation="static", shift=True, quantize_head=True, loss="linear",
                                              grid_steps=3)


class Code(nn.Module):
    """``code(x, *layers)`` as a module."""

    def __init__(self, code: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.code, self.layers = code, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Any:
        return self.code(*inputs, *self.layers)


@dataclass
class Rewritten:
    """``module(*inputs)`` is the quantized graph's result (a tuple); ``sites`` are those of the graph before."""

    module: GraphModule
    inputs: list[Any]
    sites: GraphSites

    def __call__(self) -> Any:
        with torch.no_grad():
            return self.module(*self.inputs)[0]

    def calls(self, target: Any) -> list[Node]:
        """Nodes that call ``target``."""
        return [n for n in self.module.graph.nodes if n.target == target]


def relative(result: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def quantized(model: nn.Module, recipe: Any, *inputs: Tensor) -> nn.Module:
    """``model`` calibrated on ``inputs`` and converted."""
    torch._dynamo.reset()
    return torchqx.quantize(model.eval(), recipe, [inputs])


def rewrite(model: nn.Module, *inputs: Tensor, fuse: bool = False) -> Rewritten:
    """The graph of a quantized model, rewritten for its integer weights."""
    gm, args = capture_one(model, *inputs)
    values = dict(zip([n for n in gm.graph.nodes if n.op == "placeholder"], args, strict=True))
    canonicalize(gm)
    sites = find_sites(gm, {n: v for n, v in values.items() if isinstance(v, nn.Parameter)})
    stored = {n: v for n, v in values.items() if isinstance(v, torchqx.QuantizedWeight)}
    structures = {}
    for site in sites.linears:
        structures |= structures_of([(op, stored[op.weight]) for op in site.ops if op.weight in stored])
    graph = quantize_graph(gm, sites, structures, list(stored))
    if fuse:
        fuse_rotations(graph.module)
        fuse_gates(graph)
        fuse_epilogues(graph.module)
    given = [values[i] if isinstance(i, Node) else
             i.build([stored[n] for n in i.weights], [None if n is None else values[n] for n in i.others])
             for i in graph.inputs]
    return Rewritten(graph.module, given, sites)
