"""Moves explicit rotations through a graph until as few as possible are left.

    before   hadamardᵀ(writer) + stream -> norm -> hadamard -> reader      after   writer + stream' -> norm -> reader

Only nodes ``torchqx::hadamard`` move, and the graph means the same before and after: what a quantized matmul's weight
has absorbed is not looked at. What does not cancel stays, or ends at a float weight: that of an embedding or a linear.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from torchqx.fx_passes.in_place import changing_values
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.rotations.absorb import Gains, norm_before, take_out_norms
from torchqx.fx_passes.rotations.carriers import Carried, Shape, carried
from torchqx.fx_passes.rotations.frames import carriers_of, choose_frames, paired, reads_values
from torchqx.fx_passes.rotations.functional import functionalize_additions
from torchqx.fx_passes.rotations.norms import bare_layer_norm, rotated_ones
from torchqx.fx_passes.rotations.offline import from_weights
from torchqx.fx_passes.rotations.patches import take_rows
from torchqx.fx_passes.sites.norms import find_norms
from torchqx.fx_passes.sites.ops import fake, op_name
from torchqx.fx_passes.sites.provenance import Provenance, placeholder_parameters


@dataclass(frozen=True)
class Frame:
    """Coordinates rotated by R: its block, and its signs (None: no signs)."""

    block: int
    signs: Node | None
    shape: Shape


def fold_rotations(gm: GraphModule, gains: Gains, weights: Collection[Node]) -> set[Node]:
    """Rewrite ``gm`` in place; its inputs stay as they are. Returns the ops that compute something else now.

    Args:
        gains: divisor -> (norm weight, offset) that it equals; see :func:`take_out_norms`.
        weights: inputs that are known before the graph runs: rotating them costs nothing.
    """
    functionalize_additions(gm)
    take_rows(gm.graph)
    linears = linears_behind_norms(gm, weights)
    if linears:  # a norm is taken apart for those only that will read it rotated
        graph, copies = copied(gm)
        trial = _fold(GraphModule(gm, graph), {copies[d]: (copies[w], o) for d, (w, o) in gains.items()},
                      {copies[n] for n in weights}, {copies[n] for n in linears})
        linears = {n for n in linears if copies[n] in trial}
    return _fold(gm, gains, weights, linears)


def linears_behind_norms(gm: GraphModule, weights: Collection[Node]) -> set[Node]:
    """Float linears that could absorb the weight of the norm whose result they read."""
    norms, _ = find_norms(gm, Provenance(gm, placeholder_parameters(gm)))
    return {n for n in gm.graph.nodes if op_name(n) == "linear" and n.args[1:] and not n.kwargs
            and n.args[1] in weights and norm_before(n.args[0], norms)}


def _fold(gm: GraphModule, gains: Gains, weights: Collection[Node], linears: Collection[Node]) -> set[Node]:
    take_out_norms(gm, gains, linears)
    for node in gm.graph.nodes:
        if node.target in (HADAMARD, torch.div):
            _alike(node, node.args[0])
    rewritten: set[Node] = set()
    for frame in dict.fromkeys(frame_of(node) for node in rotations(gm.graph)):
        rewritten |= _Folding(gm.graph, frame, weights).run()
    cancel_pairs(gm.graph)
    for node in reversed(rotations(gm.graph)):
        if not node.users:
            gm.graph.erase_node(node)
    gm.graph.lint()
    gm.recompile()
    return rewritten


def _alike(node: Node, value: Node) -> None:
    """A rotation's result and its operand have one shape and type: what is known of one is known of the other."""
    for known, other in ((node, value), (value, node)):
        if fake(known) is not None and fake(other) is None:
            other.meta["example_value"] = fake(known)


def copied(gm: GraphModule) -> tuple[Graph, dict[Node, Node]]:
    """A copy of a module's graph, and where each node went."""
    graph, copies = Graph(), {}
    result = graph.graph_copy(gm.graph, copies)
    old, new = next(n for n in gm.graph.nodes if n.op == "output"), graph.output(result)
    new.meta = dict(old.meta)
    copies[old] = new
    return graph, copies


def rotations(graph: Graph) -> list[Node]:
    """The explicit rotations, in graph order."""
    return [n for n in graph.nodes if n.target is HADAMARD and fake(n) is not None]


def frame_of(node: Node) -> Frame:
    """The frame that an explicit rotation leads to or from."""
    value, signs, block = node.args[:3]
    if signs is None:
        return Frame(block, None, Shape(block, None))
    return Frame(block, signs, Shape(block, fake(value).shape[-1]))


class _Folding:
    """One frame's rotations."""

    def __init__(self, graph: Graph, frame: Frame, weights: Collection[Node]) -> None:
        self.graph, self.frame = graph, frame
        changing = changing_values(graph.nodes)
        own = [n for n in rotations(graph) if frame_of(n) == frame]
        self.signs = own[0].args[1]
        self.sources = {n for n in own if n.args[3]}
        self.sinks = {n: n.args[0] for n in own if not n.args[3] and n.args[0] not in changing}
        self.carriers = carriers_of(graph.nodes, lambda n: carried(n, frame.shape))
        self.chosen = choose_frames(graph, self.carriers, self.sources, (), self.sinks,
                                    from_weights(graph, weights))
        self.made: dict[tuple[Node, bool], Node] = {}

    def run(self) -> set[Node]:
        """Rewrite; returns the ops that now compute in the frame."""
        for reader in list(self.graph.nodes):
            if reader.op not in ("placeholder", "get_attr") and reader not in self.sinks:
                self._rewrite(reader)
        for node in [n for n in self.chosen if isinstance(n, Node) and n.target is bare_layer_norm]:
            node.args = (*node.args[:3], self._ones(node))
        for sink, value in self.sinks.items():
            sink.replace_all_uses_with(self._turned(value))
            self.graph.erase_node(sink)
        return {place if isinstance(place, Node) else place[0] for place in self.chosen}

    def _rewrite(self, reader: Node) -> None:
        found: Carried | None = self.carriers.get(reader)
        turned: Collection[tuple[int, ...]] = ()
        if found is not None:
            turned = (*(found.slots if reader in self.chosen else ()),
                      *(found.paired if paired(reader) in self.chosen else ()))

        def given(value: Any, slot: tuple[int, ...]) -> Any:
            if isinstance(value, Node):
                return self._turned(value) if slot in turned else self._plain(value, reader)
            if isinstance(value, list | tuple):
                return type(value)(given(v, (*slot, i)) for i, v in enumerate(value))
            return map_arg(value, lambda n: self._plain(n, reader))

        args = tuple(given(value, (i,)) for i, value in enumerate(reader.args))
        reader.kwargs = map_arg(dict(reader.kwargs), lambda n: self._plain(n, reader))
        reader.args = args

    def _turned(self, value: Node) -> Node:
        """``value`` in rotated coordinates."""
        if value in self.sources:
            return value.args[0]
        return value if value in self.chosen else self._hadamard(value, transpose=False)

    def _plain(self, value: Node, reader: Node) -> Node:
        turned = value in self.chosen and value not in self.sources
        if not turned or not isinstance(value.meta.get("example_value"), Tensor) or not reads_values(reader, value):
            return value
        return self._hadamard(value, transpose=True)

    def _hadamard(self, value: Node, transpose: bool) -> Node:
        if (value, transpose) not in self.made:
            with self.graph.inserting_after(self._after(value)):
                node = self.graph.call_function(HADAMARD, (value, self.signs, self.frame.block, transpose))
            node.meta = dict(value.meta)
            self.made[value, transpose] = node
        return self.made[value, transpose]

    def _after(self, *values: Node | None) -> Node:
        """Where a node that reads ``values`` and the signs may stand."""
        inputs = [n for n in self.graph.nodes if n.op in ("placeholder", "get_attr")]
        return max([inputs[-1], *(v for v in (*values, self.signs) if v is not None)])

    def _ones(self, norm: Node) -> Node:
        """The direction along which a rotated layer norm takes its mean, made once per length and type."""
        value = fake(norm)
        width, dtype = value.shape[-1], torch.promote_types(value.dtype, torch.float32)
        key = (width, dtype, value.device)
        if key not in self.made:
            with self.graph.inserting_after(self._after()):
                self.made[key] = self.graph.call_function(
                    rotated_ones, (width, self.signs, self.frame.block, dtype, value.device))
        return self.made[key]


def cancel_pairs(graph: Graph) -> None:
    """x R Rᵀ -> x, and one rotation for all readers of one value."""
    seen: dict[tuple, Node] = {}
    changing = changing_values(graph.nodes)
    for node in rotations(graph):
        value, frame, transpose = node.args[0], frame_of(node), node.args[3]
        if value in changing:
            continue
        inner = value if value.target is HADAMARD and frame_of(value) == frame else None
        if inner is not None and inner.args[3] != transpose and inner.args[0] not in changing:
            node.replace_all_uses_with(inner.args[0])
        elif (first := seen.setdefault((value, frame, transpose), node)) is not node:
            node.replace_all_uses_with(first)
