"""Writes the rotations of a plan into a float graph, as the quantized graph will have them.

    before   linear(x, W)      after   hadamardᵀ(linear(hadamard(x / g), W))
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.sites import LinearOp, NormSite
from torchqx.fx_passes.sites.ops import fake
from torchqx.rotations import Hadamard


@dataclass(frozen=True, eq=False)
class RotationChoice:
    """How one matmul's operands are rotated.

    Attributes:
        input: R of the activation.
        norm: whose weight g the matmul absorbs before R, or None.
        output: R_o in which the matmul writes, or None.
        folded: whether R costs nothing in the graph that was planned for.
        reason: why it does, where it does not.
    """

    input: Hadamard
    norm: NormSite | None = None
    output: Hadamard | None = None
    folded: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Inserted:
    """Nodes that stand for the rotations of one matmul, None where there is none; ``gains`` as
    :func:`~torchqx.fx_passes.rotations.absorb.take_out_norms` takes them."""

    inputs: dict[LinearOp, Node]
    outputs: dict[LinearOp, Node]
    gains: dict[Node, tuple[Node, float]]


def rotation_signs(seed: int, width: int, device: torch.device) -> Tensor:
    """float32 [width] of +-1."""
    signs = Hadamard(1, seed).signs(width, device)
    assert signs is not None
    return signs


def insert_rotations(gm: GraphModule, choices: Mapping[LinearOp, RotationChoice], copies: Mapping[Node, Node]
                     ) -> Inserted:
    """Rewrite ``gm``, a copy of the graph that the ops were found in, in place; weights stay as they are.

    Args:
        copies: node of the original graph -> node of ``gm``.
    """
    made = Inserted({}, {}, {})
    writer = _Writer(gm.graph, copies, made.gains)
    back: dict[Node, Node] = {}
    for op, choice in choices.items():
        node, x = copies[op.node], copies[op.x]
        x = back.get(x, x)
        made.inputs[op] = writer.rotated_input(x, choice)
        node.args = tuple(made.inputs[op] if a is x else a for a in node.args)
        node.kwargs = {k: made.inputs[op] if a is x else a for k, a in node.kwargs.items()}
        if choice.output is not None:
            made.outputs[op] = back[node] = writer.hadamard(node, choice.output, transpose=True)
            node.replace_all_uses_with(back[node], delete_user_cb=lambda user, own=back[node]: user is not own)
    gm.graph.lint()
    gm.recompile()
    return made


class _Writer:
    def __init__(self, graph: Graph, copies: Mapping[Node, Node], gains: dict[Node, tuple[Node, float]]) -> None:
        self.graph, self.copies, self.gains = graph, copies, gains
        self.made: dict[tuple, Node] = {}
        self.top = [n for n in graph.nodes if n.op in ("placeholder", "get_attr")][-1]

    def rotated_input(self, x: Node, choice: RotationChoice) -> Node:
        """(x / g) R, one node for all readers alike."""
        key = (x, choice.input, choice.norm)
        if key not in self.made:
            value = x
            if choice.norm is not None:
                value = self._after(x, torch.div, (x, self._gain(choice.norm)))
                value.meta = dict(x.meta)
            self.made[key] = self.hadamard(value, choice.input, transpose=False)
        return self.made[key]

    def hadamard(self, value: Node, rotation: Hadamard, transpose: bool) -> Node:
        signs = None
        if rotation.seed is not None:
            width, device = fake(value).shape[-1], fake(value).device
            signs = self._once(rotation_signs, (rotation.seed, width, device))
        node = self._after(value, HADAMARD, (value, signs, rotation.block, transpose))
        node.meta = dict(value.meta)
        return node

    def _gain(self, norm: NormSite) -> Node:
        assert norm.weight is not None
        weight = self.copies[norm.weight]
        if not norm.weight_offset:
            return weight
        gain = self._once(torch.add, (weight, norm.weight_offset))
        self.gains[gain] = (weight, norm.weight_offset)
        return gain

    def _once(self, function, args: tuple) -> Node:
        if (function, args) not in self.made:
            self.made[function, args] = self._after(self.top, function, args)
        return self.made[function, args]

    def _after(self, place: Node, function, args: tuple) -> Node:
        with self.graph.inserting_after(place if place.op not in ("placeholder", "get_attr") else self._last_input()):
            return self.graph.call_function(function, args)

    def _last_input(self) -> Node:
        """After all inputs, and after what was written there from them."""
        once = [n for key, n in self.made.items() if key[0] in (rotation_signs, torch.add)]
        return max([self.top, *once])
