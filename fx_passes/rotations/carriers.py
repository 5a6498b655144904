"""Which operands an op carries over so that rotating the rows of those rotates the rows of its result.

    op(x R, …) = op(x, …) R

Rows are taken along the last dimension. A rotation without signs acts on each block alike, so whatever moves whole
blocks carries it too: heads may split off and come back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from torchqx.fx_passes.in_place import written
from torchqx.fx_passes.rotations.norms import bare_layer_norm, bare_rms_norm
from torchqx.fx_passes.sites.ops import argument, constant, fake, is_cast, op_name, same_size

Slot = tuple[int, ...]


@dataclass(frozen=True)
class Carried:
    """Operands of one op, as paths into its arguments.

    Attributes:
        slots: rotated together with the result.
        paired: rotated together with each other, which leaves the result as it is (queries and keys, rows and weight).
    """

    slots: tuple[Slot, ...]
    paired: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Shape:
    """What a rotation needs of a value: rows of exactly ``width`` elements, or of whole blocks where it is None."""

    block: int
    width: int | None

    def fits(self, value: Any) -> bool:
        """Whether a tensor (a list of tensors: each) can be rotated."""
        if isinstance(value, list | tuple):
            return bool(value) and all(map(self.fits, value))
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim:
            return False
        size = value.shape[-1]
        if not isinstance(size, int) or not size:
            return False
        return size % self.block == 0 if self.width is None else size == self.width


def operand(node: Node, slot: Slot) -> Any:
    """What stands at ``slot`` of the node's arguments."""
    found: Any = node.args
    for index in slot:
        found = found[index]
    return found


def size_of(node: Node) -> int:
    """Elements of a node's value, with the sizes that the graph was traced with."""
    values = node.meta.get("example_value")
    values = values if isinstance(values, list | tuple) else [values]
    return sum(prod(int(constant(n) or 1) for n in v.shape) for v in values if isinstance(v, Tensor))


def carried(node: Node, shape: Shape) -> Carried | None:
    """How ``node`` carries rotations of ``shape``; None where it does not."""
    if node.op not in ("call_function", "call_method") or written(node) is not None:
        return None
    rule = _RULES.get(_name(node))
    if rule is None or any("example_value" not in value.meta for value in node.all_input_nodes):
        return None
    if rule is not _multiplied and not shape.fits(node.meta.get("example_value")):
        return None
    found = rule(node, shape)
    if found is None:
        return None
    if all(_fits(operand(node, slot), shape) for slot in (*found.slots, *found.paired)):
        return found
    rest = found.slots if found.paired else ()
    return Carried(rest) if rest and all(_fits(operand(node, s), shape) for s in rest) else None


def is_known(node: Node) -> bool:
    """Whether the op has a rule here: it gives the same again for the same operands (a random one has none)."""
    return _name(node) in _RULES


def _name(node: Node) -> str:
    if node.target in (bare_rms_norm, bare_layer_norm):
        return "bare_norm"
    return "cast" if is_cast(node) else op_name(node)


def _fits(value: Any, shape: Shape) -> bool:
    return isinstance(value, Node) and shape.fits(value.meta.get("example_value"))


def _first(node: Node, shape: Shape) -> Carried:
    """The op moves whole rows, or whole blocks in their order, or treats every element alike and linearly."""
    return Carried(((0,),))


def _added(node: Node, shape: Shape) -> Carried | None:
    """Two tensors whose rows have the length of the result's; leading dimensions may broadcast."""
    rows = fake(node).shape[-1]
    both = len(node.args) == 2 and all(_rows_of(fake(a), rows) for a in node.args)
    return Carried(((0,), (1,))) if both else None


def _rows_of(value: Tensor | None, size: int) -> bool:
    return value is not None and value.ndim > 0 and same_size(value.shape[-1], size)


def _scaled(node: Node, shape: Shape) -> Carried | None:
    """A factor or divisor that is the same along each row."""
    rows, last = fake(node).shape[-1], 2 if op_name(node) == "mul" else 1
    if len(node.args) != 2 or node.kwargs:
        return None
    for i, value in enumerate(map(fake, node.args[:last])):
        other = node.args[1 - i]
        factor = fake(other)
        alike = constant(other) is not None if factor is None else not factor.ndim or same_size(factor.shape[-1], 1)
        if alike and _rows_of(value, rows):
            return Carried(((i,),))
    return None


def _numbers(given: Iterable[Any]) -> list[int] | None:
    flat = [n for part in given for n in (part if isinstance(part, list | tuple) else [part])]
    return flat if flat and all(isinstance(n, int) for n in flat) else None


def _beside(dims: Iterable[Any], ndim: int) -> bool:
    """Whether all of ``dims`` are known, and none is the last."""
    known = _numbers(dims)
    return known is not None and all(d % ndim != ndim - 1 for d in known)


def _over(position: int, *names: str, default: Any = None) -> Callable[[Node, Shape], Carried | None]:
    """The op works along dimensions given at ``position``, which must not be the last."""

    def rule(node: Node, shape: Shape) -> Carried | None:
        dims = argument(node, position, *names, default=default)
        return Carried(((0,),)) if _beside([dims], fake(node.args[0]).ndim) else None

    return rule


def _transposed(node: Node, shape: Shape) -> Carried | None:
    dims = argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1")
    return Carried(((0,),)) if _beside(dims, fake(node.args[0]).ndim) else None


def _permuted(node: Node, shape: Shape) -> Carried | None:
    order = _numbers(node.args[1:] or node.kwargs.get("dims", ()))
    last = fake(node.args[0]).ndim - 1
    return Carried(((0,),)) if order is not None and order[-1] % (last + 1) == last else None


def _same_last(node: Node, shape: Shape) -> Carried | None:
    """Repeats along other dimensions than the last."""
    return Carried(((0,),)) if _rows_of(fake(node.args[0]), fake(node).shape[-1]) else None


def _unsqueezed(node: Node, shape: Shape) -> Carried | None:
    return Carried(((0,),)) if _beside([argument(node, 1, "dim")], fake(node).ndim) else None


def _split(node: Node, shape: Shape) -> Carried | None:
    """Parts along another dimension, or of whole blocks along the last (``carried`` looked at each part's length)."""
    dim = argument(node, 2, "dim", "axis", default=0)
    return Carried(((0,),)) if shape.width is None or _beside([dim], fake(node.args[0]).ndim) else None


def _narrowed(node: Node, shape: Shape) -> Carried | None:
    dim, start = argument(node, 1, "dim"), argument(node, 2, "start")
    aligned = shape.width is None and isinstance(start, int) and start % shape.block == 0
    return Carried(((0,),)) if aligned or _beside([dim], fake(node.args[0]).ndim) else None


def _indexed(node: Node, shape: Shape) -> Carried | None:
    """Slices and positions of other dimensions than the last, or one part of a split."""
    if not isinstance(node.args[0].meta.get("example_value"), Tensor):
        return Carried(((0,),))
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in index):
        return None
    taken = sum(part is not None and part is not Ellipsis for part in index)
    whole = (not index or index[-1] == slice(None) or index[-1] is Ellipsis
             or (Ellipsis not in index and taken < fake(node.args[0]).ndim))
    return Carried(((0,),)) if whole and index[-1:] != (None,) else None


def _joined(node: Node, shape: Shape) -> Carried | None:
    """Tensors one after the other; those without elements stay as they are."""
    parts, dim = node.args[0], argument(node, 1, "dim", "axis", default=0)
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Node) for part in parts):
        return None
    if not _beside([dim], fake(node).ndim) and (shape.width is not None or op_name(node) == "stack"):
        return None
    return Carried(tuple((0, i) for i, part in enumerate(parts) if fake(part) is None or fake(part).numel() != 0))


def _product(node: Node, shape: Shape) -> Carried | None:
    """A (B R) = (A B) R."""
    right = fake(node.args[1]) if len(node.args) > 1 else None
    return Carried(((1,),)) if right is not None and right.ndim >= 2 else None


def _attention(node: Node, shape: Shape) -> Carried | None:
    """softmax((q R)(k R)ᵀ) (v R) = (softmax(q kᵀ) v) R; one R may be there without the other."""
    return Carried(((2,),), paired=((0,), (1,))) if len(node.args) > 2 else None


def _multiplied(node: Node, shape: Shape) -> Carried | None:
    """(x R)(W R)ᵀ = x Wᵀ, whatever the bias."""
    return Carried((), paired=((0,), (1,))) if len(node.args) > 1 else None


def _looked_up(node: Node, shape: Shape) -> Carried | None:
    """Rows of a table; those that are scaled down as they are looked up are not the table's."""
    plain = argument(node, 3, "max_norm") is None and len(node.args) > 1
    return Carried(((1,),)) if plain and node.target is F.embedding else None


def _view(node: Node, shape: Shape) -> Carried | None:
    return None if any(isinstance(a, torch.dtype) for a in node.args) or "dtype" in node.kwargs else Carried(((0,),))


_RULES: dict[str, Callable[[Node, Shape], Carried | None]] = {
    **dict.fromkeys(("cast", "neg", "bare_norm", "squeeze"), _first),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"), _view),
    **dict.fromkeys(("add", "sub"), _added),
    **dict.fromkeys(("mul", "div"), _scaled),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("expand", "expand_as", "repeat"), _same_last),
    **dict.fromkeys(("mean", "sum", "index_select", "select", "flip"), _over(1, "dim", "dims", "axis")),
    **dict.fromkeys(("roll", "repeat_interleave"), _over(2, "dim", "dims")),
    **dict.fromkeys(("split", "chunk", "tensor_split"), _split),
    **dict.fromkeys(("cat", "concat", "stack"), _joined),
    **dict.fromkeys(("matmul", "bmm"), _product),
    "linear": _multiplied,
    "embedding": _looked_up,
    "unbind": _over(1, "dim", default=0),
    "permute": _permuted,
    "unsqueeze": _unsqueezed,
    "narrow": _narrowed,
    "getitem": _indexed,
    "scaled_dot_product_attention": _attention,
}
