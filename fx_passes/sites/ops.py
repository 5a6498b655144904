"""What a node does and what it reads, however it was written: operator, torch function, method, ATen overload."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

_SPELLINGS = {
    "truediv": "div",
    "itruediv": "div",
    "true_divide": "div",
    "divide": "div",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "multiply": "mul",
    "subtract": "sub",
    "imatmul": "matmul",
    "_softmax": "softmax",
    "_grouped_mm": "grouped_mm",
    "grouped_mm_fallback": "grouped_mm",
    "and_": "and",
    "or_": "or",
    "invert": "not",
    "bitwise_not": "not",
    "logical_not": "not",
    "bitwise_and": "and",
    "logical_and": "and",
}


def op_name(node: Node) -> str:
    """The op's name without its spelling: ``operator.iadd``, ``torch.add``, ``Tensor.add_`` are all "add"; an
    attribute (``x.mT``) has its own name.

    Placeholders, outputs, and module calls give "".
    """
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function" and node.target is getattr:
        name = str(node.args[1])
    elif node.op == "call_function":
        target = node.target
        packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
        name = getattr(packet, "__name__", "")
    else:
        return ""
    if name in _SPELLINGS:
        return _SPELLINGS[name]
    bare = name[:-1] if name.endswith("_") and not name.startswith("__") else name
    return _SPELLINGS.get(bare, bare)


def argument(node: Node, position: int, *names: str, default: Any = None) -> Any:
    """The argument at ``position``, or given by one of ``names``."""
    if position < len(node.args):
        return node.args[position]
    for name in names:
        if name in node.kwargs:
            return node.kwargs[name]
    return default


def fake(node: Any) -> torch.Tensor | None:
    """The fake tensor that Dynamo kept for a node's value, if the value is a tensor."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def is_mapped(node: Node) -> bool:
    """Whether a function transform (``torch.func.vmap``, ``grad``) is at work on the node's value: nothing else can
    look at it."""
    value = fake(node)
    return value is not None and torch._C._functorch.is_functorch_wrapped_tensor(value)


def constant(value: Any) -> float | int | None:
    """A number: written in the graph, or one that Dynamo made an input (``dynamic=True``) with the value it had."""
    if isinstance(value, Node):
        value = value.meta.get("example_value")
    if isinstance(value, torch.SymFloat | torch.SymInt):
        value = value.node.hint
    return value if isinstance(value, int | float) else None


def traced_rows(node: Node) -> int | None:
    """Rows of a node's value in the call that was traced; None where no size is known before the graph runs."""
    rows = 1
    for size in node.meta["example_value"].shape[:-1]:
        known = size.node.hint if isinstance(size, torch.SymInt) else size
        if known is None:
            return None
        rows *= known
    return rows


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal; never adds a guard on a symbolic size."""
    return statically_known_true(a == b)


def same_shape(a: Node, b: Node) -> bool:
    """Whether two nodes are tensors of one shape, as far as known without a guard."""
    x, y = fake(a), fake(b)
    return x is not None and y is not None and x.ndim == y.ndim and all(map(same_size, x.shape, y.shape))


def last_dim(node: Node, dim: Any) -> bool:
    """Whether ``dim`` (an int, or a list of one) is the last dimension of the node's value."""
    if isinstance(dim, Sequence):
        if len(dim) != 1:
            return False
        dim = dim[0]
    value = fake(node)
    return isinstance(dim, int) and (dim == -1 or (value is not None and dim == value.ndim - 1))


def is_identity(node: Node) -> bool:
    """An op that gives its first operand back: dropout in eval, ``* 1.0``, ``+ 0``, ``.to`` of the same dtype."""
    name = op_name(node)
    if not node.args:
        return False
    if name in ("contiguous", "clone", "detach", "alias"):
        return True
    if name in ("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"):
        training = argument(node, 2, "training", "train", default=True)
        return training is False or argument(node, 1, "p", default=0.5) == 0
    if name in ("to", "float", "type_as", "half", "bfloat16", "type"):
        before, after = fake(node.args[0]), fake(node)
        return before is not None and after is not None and before.dtype == after.dtype
    if name in ("mul", "div") and len(node.args) == 2:
        return isinstance(node.args[0], Node) and isinstance(node.args[1], int | float) and node.args[1] == 1
    if name in ("add", "sub") and len(node.args) == 2:
        return isinstance(node.args[0], Node) and isinstance(node.args[1], int | float) and node.args[1] == 0
    return False


def before_identities(node: Any) -> Any:
    """The value that ``node`` is, seen through ops that give their operand back."""
    while isinstance(node, Node) and is_identity(node):
        node = node.args[0]
    return node


def is_cast(node: Node) -> bool:
    """A change of dtype or an identity."""
    return op_name(node) in ("to", "float", "type_as", "half", "bfloat16", "double", "type") or is_identity(node)


def before_casts(node: Any) -> Any:
    """The value that ``node`` is a cast of."""
    while isinstance(node, Node) and is_cast(node):
        node = node.args[0]
    return node


RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"})


def same_rows(node: Node) -> Node:
    """The activation that ``node`` is a view of, seen through identities and reshapes that keep the last dimension."""
    while True:
        name = op_name(node)
        if name in RESHAPES:
            before, after = fake(node.args[0]), fake(node)
            if before is None or after is None or not before.ndim or not after.ndim:
                return node
            if not same_size(before.shape[-1], after.shape[-1]):
                return node
        elif not is_identity(node):
            return node
        node = node.args[0]
