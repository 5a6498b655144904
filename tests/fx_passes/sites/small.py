"""Graphs of small functions with parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from tests.capture import capture_one
from tests.fx_passes.sites.recompute import Values
from torchqx.fx_passes.sites import GraphSites, LinearOp, find_sites, parameter_nodes


class Small(nn.Module):
    """``code(x, *parameters)`` as a module whose parameters have the given shapes."""

    def __init__(self, code: Callable[..., Any], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.code = code
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, *inputs: Tensor) -> Any:
        return self.code(*inputs, *self.weights)


def sites_of(
    code: Callable[..., Any], *inputs: Tensor, weights: Sequence[tuple[int, ...]] = ()
) -> tuple[GraphSites, dict[Node, Any]]:
    """Sites of the traced function, and the value of every node."""
    gm, example_inputs = capture_one(Small(code, weights), *inputs)
    return find_sites(gm, parameter_nodes(gm, example_inputs)), Values(gm, example_inputs).of


def only_op(sites: GraphSites) -> LinearOp:
    """The one weighted matmul."""
    (site,) = sites.linears
    (op,) = site.ops
    assert not sites.unsupported
    return op
