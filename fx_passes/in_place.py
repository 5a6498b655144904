"""Writes in place: what a later node reads may not be what an earlier one computed."""

import operator

from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

OPERATORS = frozenset({
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imatmul, operator.iand, operator.ior, operator.ixor,
})
METHODS = frozenset(f"__{operator_.__name__}__" for operator_ in OPERATORS)


def written(node: Node) -> Node | None:
    """The tensor that ``node`` writes into: the first operand of ``add_``, ``x[i] = y``, ``x += y``; else None."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or node.target in OPERATORS or name in METHODS
    in_place = in_place or node.kwargs.get("inplace") is True
    if node.op in ("placeholder", "output") or not in_place or not node.args:
        return None
    return node.args[0] if isinstance(node.args[0], Node) and _storage(node.args[0]) is not None else None


def written_between(value: Node, start: Node, end: Node) -> bool:
    """Whether a node after ``start`` and before ``end`` writes into ``value`` or a tensor that shares its memory."""
    memory = _storage(value)
    node = start.next
    while memory is not None and node is not end and node.op != "root":
        target = written(node)
        if target is not None and _storage(target) == memory:
            return True
        node = node.next
    return False


def _storage(node: Node) -> int | None:
    """Identity of the memory under a node's fake value: equal for views of one tensor."""
    value = node.meta.get("example_value")
    return value.untyped_storage()._cdata if isinstance(value, FakeTensor) else None
