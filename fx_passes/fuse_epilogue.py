"""Moves what stands after an integer matmul into the CPU kernel's epilogue.

    before   y = int8_linear(codes, ...)      after   int8_linear(codes, ..., activation="gelu", out_mul, out_add)
             g = gelu(y)
             quantize_static(g, out_mul, out_add)

    before   y = int8_linear(codes, ...)      after   int8_linear(codes, ..., residual=stream)
             stream + y
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from torchqx.fx_passes.erase import replace
from torchqx.fx_passes.in_place import written, written_between
from torchqx.fx_passes.lower import PACKED
from torchqx.fx_passes.sites.ops import fake, same_shape
from torchqx.inductor_kernels.int8_linear.activations import quick_gelu
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.inductor_kernels.int8_linear.schema import GATE

ACTIVATION, RESIDUAL, OUT_MUL, OUT_ADD, QMIN, QMAX = 7, 8, 9, 10, 11, 12
FUNCTIONS = {F.relu: "relu", torch.relu: "relu", F.silu: "silu", F.gelu: "gelu", torch._C._nn.gelu: "gelu",
             quick_gelu: "quick_gelu"}
ADDITIONS = (operator.add, operator.iadd, torch.add)


def fuse_epilogues(gm: GraphModule) -> GraphModule:
    """Fuse in place, each matmul as far as its single readers go; returns ``gm``."""
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target is PACKED:
            if len(node.args) == GATE:  # else it is a gated product, whose activation is taken
                _fuse_activation(node)
            _fuse_residual(node, order)
            _fuse_requantize(node, order)
    gm.graph.lint()
    gm.recompile()
    return gm


def only_user(node: Node) -> Node | None:
    """The one node that reads ``node``."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def set_arguments(node: Node, **values: Any) -> None:
    """Give a matmul other arguments, by the names of their positions here."""
    args = list(node.args)
    for name, value in values.items():
        args[globals()[name]] = value
    node.args = tuple(args)


def activation_of(user: Node | None, node: Node) -> str | None:
    """The kernel's name of the function that ``user`` is of ``node``; None if it knows none."""
    if user is None or user.op != "call_function" or user.target not in FUNCTIONS or user.args[:1] != (node,):
        return None
    name = FUNCTIONS[user.target]
    approximate = user.kwargs.get("approximate", user.args[1] if len(user.args) > 1 and name == "gelu" else "none")
    return "gelu_tanh" if name == "gelu" and approximate == "tanh" else name


def _fuse_activation(node: Node) -> None:
    user = only_user(node)
    name = activation_of(user, node)
    if name is not None:
        set_arguments(node, ACTIVATION=name)
        replace(user, node)


def _fuse_residual(node: Node, order: dict[Node, int]) -> None:
    user = only_user(node)
    if user is None or user.op != "call_function" or user.target not in ADDITIONS or user.kwargs:
        return
    if len(user.args) != 2 or user.args[0] is user.args[1]:
        return
    other = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(other, Node) or other not in order or order[other] > order[node]:
        return
    mine, theirs = fake(node), fake(other)
    if (written(user) is not None and user.args[0] is not node) or written_between(other, node, user):
        return  # the sum itself, or something before it, changes a tensor that others may read
    if same_shape(node, other) and theirs.dtype == mine.dtype and user.meta["example_value"].dtype == mine.dtype:
        set_arguments(node, RESIDUAL=other)
        replace(user, node)


def _fuse_requantize(node: Node, order: dict[Node, int]) -> None:
    user = only_user(node)
    if user is None or user.op != "call_function" or user.target is not quantize_static or user.args[0] is not node:
        return
    _, multiplier, addend, qmin, qmax = user.args
    # The placeholders of the next quantizer stand at the top of the graph, so they are known here.
    set_arguments(node, OUT_MUL=multiplier, OUT_ADD=addend, QMIN=qmin, QMAX=qmax)
    replace(user, node)
