"""Writes in place: what a later node reads may not be what an earlier one computed."""

import operator
from collections.abc import Iterable

from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

OPERATORS = frozenset({
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imatmul, operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.ilshift,
    operator.irshift,
})
METHODS = frozenset(f"__{operator_.__name__}__" for operator_ in OPERATORS)
PURE = frozenset({operator.and_, operator.or_, operator.not_, operator.is_})  # named as if they wrote


def written(node: Node) -> Node | None:
    """The tensor that ``node`` writes into: the first operand of ``add_``, ``x[i] = y``, ``x += y``; ``out=``."""
    if node.op in ("placeholder", "output"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and node.target not in PURE
    in_place = in_place or node.target in OPERATORS or name in METHODS or node.kwargs.get("inplace") is True
    target = node.args[0] if in_place and node.args else node.kwargs.get("out")
    if isinstance(node.target, OpOverload):  # its schema tells; of our own, none writes into more than one tensor
        places = [i for i, a in enumerate(node.target._schema.arguments) if a.alias_info and a.alias_info.is_write]
        target = next((node.args[i] for i in places if i < len(node.args)), target)
    return target if isinstance(target, Node) and memory_of(target) is not None else None


def written_between(value: Node, start: Node, end: Node) -> bool:
    """Whether a node after ``start`` and before ``end`` writes into ``value`` or a tensor that shares its memory."""
    memory = memory_of(value)
    node = start.next
    while memory is not None and node is not end and node.op != "root":
        target = written(node)
        if target is not None and memory_of(target) == memory:
            return True
        node = node.next
    return False


def changing_values(nodes: Iterable[Node]) -> set[Node]:
    """Values in memory that some op writes into: a copy of one would miss the change."""
    nodes = list(nodes)
    targets = {memory_of(target) for node in nodes if (target := written(node)) is not None}
    return {node for node in nodes if (memory := memory_of(node)) is not None and memory in targets}


def memory_of(node: Node) -> int | None:
    """Identity of the memory under a node's fake value: equal for views of one tensor."""
    value = node.meta.get("example_value")
    return value.untyped_storage()._cdata if isinstance(value, FakeTensor) else None
