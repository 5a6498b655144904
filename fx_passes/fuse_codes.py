"""A matmul, convolution or scan whose result is only quantized writes the codes itself.

    before   y = causal_conv1d(x, ...)                      after   y = causal_conv1d(x, ..., out_scale, uint8)
             quantize_static(view of y, mul, add, ...)              view of y
             quantize_static(another, mul', add', ...)              another

Each channel may have a scale of its own: Mamba's matmul writes dt, B and C, Mamba2's convolution x, B and C with scales
per head or group. Which channels a quantizer reads is not worked out view by view: the views are replayed on the
channels' numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from torchqx.fx_passes.derived import Build, Derived
from torchqx.fx_passes.lower import CODE_SCALES, PACKED
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.fx_passes.sites.ops import op_name
from torchqx.fx_passes.sites.scans import CHUNK_SCAN, CONV, SELECTIVE_SCAN, STATE_UPDATE, named_arguments
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.rows import left_result
from torchqx.storage import QuantizedWeight

CHANNELS = {PACKED: -1, CONV: 1, SELECTIVE_SCAN: 1, STATE_UPDATE: 1, CHUNK_SCAN: 2}
"""Operator that can write codes -> the dimension of its result whose elements may have scales of their own."""
PAIRS = (SELECTIVE_SCAN, CHUNK_SCAN)
RANGES = {(1, 255): torch.uint8, (-127, 127): torch.int8}
VIEWS = frozenset({"transpose", "permute", "getitem", "split", "chunk", "narrow", "select", "view", "reshape",
                   "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous", "left_rows", "left_result"})


@dataclass(frozen=True)
class _Spread:
    """A build of :class:`Derived`: the multipliers' elements at ``places``, one per channel.

    Attributes:
        multipliers: how each is built, and of how many weights.
    """

    multipliers: tuple[tuple[Build, int], ...]
    places: tuple[int, ...]
    __name__ = "out_multiplier"

    def __call__(self, weights: list[QuantizedWeight], _: list) -> Tensor:
        weight = iter(weights)
        made = [build(list(islice(weight, count)), []) for build, count in self.multipliers]
        values = torch.cat([multiplier.flatten() for multiplier in made])
        return values[list(self.places)] if len(values) > 1 else values


class _OutScale(_Spread):
    """The same, one over each."""

    __name__ = "out_scale"

    def __call__(self, weights: list[QuantizedWeight], others: list) -> Tensor:
        return super().__call__(weights, others).reciprocal()


def fuse_codes(graph: QuantizedGraph) -> None:
    """Fuse in place. A result that anything but a quantizer reads stays float."""
    nodes = list(graph.module.graph.nodes)
    inputs = dict(zip([n for n in nodes if n.op == "placeholder"], graph.inputs, strict=True))
    shapes = {n.args[1:]: n.meta[CODE_SCALES] for n in nodes if CODE_SCALES in n.meta}
    for node in nodes:
        if node.target in CHANNELS:
            _fuse(node, inputs, shapes)
    for holder, item in list(inputs.items()):
        if isinstance(item, Derived) and not holder.users:
            holder.graph.erase_node(holder)
            del inputs[holder]
    graph.inputs[:] = inputs.values()
    graph.module.graph.lint()
    graph.module.recompile()


def _fuse(node: Node, inputs: dict[Node, Node | Derived], shapes: dict[tuple, tuple[int, ...]]) -> None:
    """Fuse one operator, unless others read its result.

    Args:
        shapes: a quantizer's arguments (mul, add, qmin, qmax) -> the shape of its scales, for those of int8 codes
            around a zero point.
    """
    result = next((n for n in node.users if n.args[1:] == (0,)), None) if node.target in PAIRS else node
    size = None if result is None else _size(result)
    if size is None:
        return
    dim = range(len(size))[CHANNELS[node.target]]
    numbers = torch.arange(size[dim]).view(-1, *[1] * (len(size) - dim - 1)).expand(size)
    readers = list(_readers(result, numbers))
    kinds = {n.args[1:]: None for n, _ in readers if n.target is quantize_static}
    if len({kind[2:] for kind in kinds}) != 1 or any(
            n.target is not quantize_static or n.args[1:] not in shapes for n, _ in readers):
        return
    first, total = {}, 0
    for kind in kinds:
        first[kind], total = total, total + torch.Size(shapes[kind]).numel()
    places = torch.full((size[dim],), -1)
    for reader, channels in readers:
        own = torch.arange(torch.Size(shapes[reader.args[1:]]).numel()).view(shapes[reader.args[1:]])
        own = (own + first[reader.args[1:]]).expand(channels.shape)
        if bool(((places[channels] != -1) & (places[channels] != own)).any()):
            return  # one channel in two codes
        places[channels] = own
    _write_codes(node, list(kinds), places.clamp(min=0), inputs)
    for reader, _ in readers:
        reader.replace_all_uses_with(reader.args[0])
        node.graph.erase_node(reader)


def _size(node: Node) -> list[int] | None:
    """Of a result, as it was when the graph was traced; None where that was not known, or only parts have a shape."""
    user = next(iter(node.users), None)
    if "example_value" in node.meta:
        size = [_known(s) for s in node.meta["example_value"].shape]
    elif user is not None and user.target is left_result:
        *batch, columns, rows = (_known(s) for s in user.meta["example_value"].shape)
        size = [*batch, rows, columns]
    else:
        return None
    return None if None in size else size


def _write_codes(node: Node, kinds: list[tuple], places: Tensor, inputs: dict[Node, Node | Derived]) -> None:
    multipliers = [inputs[multiplier] for multiplier, *_ in kinds]
    assert not any(m.others for m in multipliers)
    parts = tuple((m.build, len(m.weights)) for m in multipliers)
    build = (_Spread if node.target is PACKED else _OutScale)(parts, tuple(places.tolist()))
    with node.graph.inserting_after(list(inputs)[-1]):
        spread = node.graph.placeholder(f"{build.__name__}_{len(inputs)}")
    inputs[spread] = Derived(build, tuple(w for m in multipliers for w in m.weights))
    _, zero, low, high = kinds[0]
    given = named_arguments(node)
    if node.target is PACKED:
        given |= {"out_mul": spread, "out_add": zero, "out_qmin": low, "out_qmax": high}
    else:
        given |= {"out_scale": spread, "out_dtype": RANGES[low, high]}
    node.args, node.kwargs = tuple(given[a.name] for a in node.target._schema.arguments), {}


def _readers(node: Node, value: Tensor | tuple[Tensor, ...]) -> Iterator[tuple[Node, Tensor]]:
    """Everything but views that reads ``node`` or a view of it, with the numbers of the channels that it reads.

    A dimension along which the numbers are the same has one element there.
    """
    for user in node.users:
        if op_name(user) in VIEWS and user.args[0] is node and _replayable(user):
            yield from _readers(user, _replay(user, value))
        else:
            once = [slice(0, 1) if stride == 0 else slice(None) for stride in value.stride()]
            yield user, value[tuple(once)]


def _replayable(view: Node) -> bool:
    """Whether nothing but known numbers tells what ``view`` shows; a tensor of indices is a value of the call."""
    return all(_known(n.meta.get("example_value")) is not None for n in view.all_input_nodes if n is not view.args[0])


def _replay(view: Node, value: Any) -> Any:
    if op_name(view) == "contiguous":
        return value  # what is expanded shall stay so
    rest, named = map_arg((view.args[1:], view.kwargs), lambda n: _known(n.meta["example_value"]))
    function = getattr(type(value), view.target) if view.op == "call_method" else view.target
    return function(value, *rest, **named)


def _known(value: Any) -> int | None:
    """A number as it was when the graph was traced; None for one that depends on data, and for anything else."""
    if isinstance(value, SymInt):
        return value.node.hint
    return value if isinstance(value, int) else None
