"""Gives activation functions that a model spells out their names, so that what knows them by name finds them.

    before   0.5 * x * (1.0 + tanh(0.7978845608 * (x + 0.044715 * pow(x, 3.0))))
    after    gelu(x, approximate="tanh")

No spelling is looked for. A region of pointwise ops with one tensor going in and one coming out is a function of one
number, and is compared with the known ones in float64: GPT-2's, BLOOM's and Gemma's are then one function, CLIP's and
exact GELU by ``erf`` two others. A model in bfloat16 rounds after each op of the region; the named function only once.
Under ``dynamic=True`` Dynamo makes inputs of the model's constants, and nothing is named.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node

from torchqx.fx_passes.erase import erase_upwards
from torchqx.fx_passes.in_place import written, written_between
from torchqx.fx_passes.sites.ops import fake, op_name
from torchqx.inductor_kernels.int8_linear.activations import quick_gelu

SEEDS = frozenset({"tanh", "erf", "sigmoid"})
POINTWISE = SEEDS | {"add", "sub", "rsub", "mul", "div", "pow", "square", "neg"}
KNOWN: tuple[tuple[Callable[..., Tensor], dict[str, Any]], ...] = (
    (F.gelu, {"approximate": "tanh"}), (F.gelu, {}), (F.silu, {}), (quick_gelu, {}))
FARTHEST = 8  # ops between a seed and either end of its region
TOLERANCE = 1e-7  # constants are written with 8 digits; GELU and its approximation differ by 5e-4


def name_activations(gm: GraphModule) -> GraphModule:
    """Rewrite ``gm`` in place and return it."""
    for node in list(gm.graph.nodes):
        if op_name(node) in SEEDS:
            _name(node)
    gm.graph.lint()
    gm.recompile()
    return gm


def _name(seed: Node) -> None:
    for source in _above(seed):
        for end in _below(seed):
            region = _region(source, end)
            found = None if region is None else _known(source, region)
            if found is None:
                continue
            function, options = found
            with end.graph.inserting_before(end):
                named = end.graph.call_function(function, (source,), options)
            named.meta.update(end.meta)
            end.replace_all_uses_with(named)
            erase_upwards(end)
            return


def _above(seed: Node) -> Iterator[Node]:
    """What the seed is computed from, the nearest first."""
    level = [seed]
    for _ in range(FARTHEST):
        level = list(dict.fromkeys(n for node in level if _is_pointwise(node) for n in node.all_input_nodes))
        yield from level


def _below(seed: Node) -> Iterator[Node]:
    """What is computed from the seed alone along the way, the nearest first."""
    node = seed
    for _ in range(FARTHEST):
        if len(node.users) != 1:
            return
        node = next(iter(node.users))
        if not _is_pointwise(node):
            return
        yield node


def _region(source: Node, end: Node) -> list[Node] | None:
    """The ops from ``source`` to ``end``, in order; None if they read anything else, or anything else reads them."""
    inside: set[Node] = set()
    queue = [end]
    while queue:
        node = queue.pop()
        if node is source or node in inside:
            continue
        if not _is_pointwise(node) or len(inside) == 2 * FARTHEST:
            return None
        inside.add(node)
        queue += node.all_input_nodes
    order, node = [], source
    while node is not end:
        node = node.next
        if node in inside:
            order.append(node)
    private = all(node is end or set(node.users) <= inside for node in order)
    before, after = fake(source), fake(end)
    same = before is not None and after is not None and before.dtype == after.dtype and before.dtype.is_floating_point
    return order if private and same and not written_between(source, source, end) else None


def _is_pointwise(node: Node) -> bool:
    """An op of tensors and written numbers that changes nothing."""
    if isinstance(node.target, OpOverload | OpOverloadPacket) and not str(node.target).startswith(("aten.", "prims.")):
        return False  # somebody else's, whatever its name
    arguments = [*node.args, *node.kwargs.values()]
    return op_name(node) in POINTWISE and written(node) is None and fake(node) is not None and \
        all(isinstance(a, int | float) or (isinstance(a, Node) and fake(a) is not None) for a in arguments)


def _known(source: Node, region: list[Node]) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """The known function that the region computes."""
    x = torch.linspace(-12, 12, 121, dtype=torch.float64, device="cpu")
    values = {source: x}
    for node in region:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
        function = node.target if node.op == "call_function" else getattr(args[0], node.target)
        values[node] = function(*args, **kwargs) if node.op == "call_function" else function(*args[1:], **kwargs)
    y = values[region[-1]]
    return next(((function, options) for function, options in KNOWN
                 if (y - function(x, **options)).abs().max() < TOLERANCE), None)
