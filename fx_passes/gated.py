"""A gated product moves into the epilogue of the CPU matmul that computes both of its operands.

    before   y = int8_linear(codes, packed [W1; W2], ..., "none", ...)
             silu(y[..., :N]) * y[..., N:]
    after    int8_linear(codes, packed [W1; W2], ..., "silu", ..., gate=0)

The two are matmuls that ran side by side (see ``quantize``), or one whose result the model splits; either half may be
the gate. The weight stays packed as it was: the kernel takes one panel from each half, so halves must be whole panels.
A bfloat16 model rounded both before it multiplied them; in the epilogue only the product is rounded.

Steps of decoding stay as they were: with few rows the time is that of reading the weight, and reading its halves in
turns takes a twentieth longer. They read the same packed weight.
"""

import torch
from torch.fx import Node

from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.erase import erase_upwards, replace
from torchqx.fx_passes.fuse_epilogue import OUT_MUL, activation_of, only_user, set_arguments
from torchqx.fx_passes.lower import PACKED
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.fx_passes.sites.ops import fake, op_name, same_size, traced_rows
from torchqx.inductor_kernels.int8_linear.pack import PANEL

WEIGHT = 1
LEAST_ROWS = 16  # 576 x 3072 from memory, on one core, takes 1.07 of the wide matmul's time with 1 or 4 rows, 1.0 here


def fuse_gates(graph: QuantizedGraph) -> None:
    """Fuse in place. A half with a second reader, or with anything between it and the product, stays apart; so do
    graphs that were traced with few rows."""
    nodes = list(graph.module.graph.nodes)
    inputs = dict(zip([n for n in nodes if n.op == "placeholder"], graph.inputs, strict=True))
    for node in nodes:
        if node.target is PACKED and node.args[OUT_MUL] is None:
            _fuse(node, inputs[node.args[WEIGHT]])
    graph.module.graph.lint()
    graph.module.recompile()


def _fuse(node: Node, weight: Derived) -> None:
    halves = _narrowed(node) if len(weight.weights) == 2 else _split(node)
    for gate, activated in enumerate(halves):
        user, activation = only_user(activated), "none"
        if user is not None and (name := activation_of(user, activated)) is not None:
            activated, activation = user, name
        product, other = only_user(activated), halves[1 - gate]
        if product is not None and only_user(other) is product and _multiplies(product, activated, other) and \
                (traced_rows(product) or 0) >= LEAST_ROWS:
            set_arguments(node, ACTIVATION=activation)
            node.args = (*node.args, gate)
            replace(product, node)
            erase_upwards(activated)
            erase_upwards(other)
            return


def _narrowed(node: Node) -> tuple[Node, ...]:
    """The two results of matmuls that ran side by side, in order, if they are equally wide."""
    parts = sorted((user for user in node.users if user.target is torch.narrow), key=lambda part: part.args[2])
    widths = [part.args[3] for part in parts]
    return tuple(parts) if len(parts) == 2 and widths[0] == widths[1] and widths[0] % PANEL == 0 else ()


def _split(node: Node) -> tuple[Node, ...]:
    """The halves of the one result that ``chunk`` or ``split`` make."""
    user = only_user(node)
    if user is None or op_name(user) not in ("chunk", "split"):
        return ()
    width = fake(node).shape[-1]
    parts = sorted(user.users, key=lambda part: part.args[1])
    halves = width % (2 * PANEL) == 0 and len(parts) == 2 and all(
        fake(part) is not None and same_size(2 * fake(part).shape[-1], width) for part in parts)
    return tuple(parts) if halves else ()


def _multiplies(node: Node, a: Node, b: Node) -> bool:
    return op_name(node) == "mul" and not node.kwargs and set(node.args) == {a, b}
