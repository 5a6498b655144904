"""Float models rotated by the passes alone: traced in float64, weights rotated by the plan, then folded."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from tests.capture import capture_one
from torchqx.fx_passes.canonicalize import canonicalize
from torchqx.fx_passes.expand import expand_opaque
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.rotations.explicit import RotationChoice, insert_rotations
from torchqx.fx_passes.rotations.fold import copied, fold_rotations, rotations
from torchqx.fx_passes.rotations.offline import from_weights
from torchqx.fx_passes.rotations.plan import FloatFold, plan_rotations, width_of
from torchqx.fx_passes.rotations.prove import difference
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp, find_sites, parameter_nodes
from torchqx.fx_passes.sites.ops import fake
from torchqx.rotations import Hadamard, choose
from torchqx.rows import conv_result

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def with_signs(k: int) -> Hadamard:
    return choose(k, seed=3)


@dataclass
class Rotated:
    """``plain`` is the float64 graph; ``explicit`` has every rotation as a node; ``folded`` has those that are left;
    ``proof`` is the difference that the proof finds between the two."""

    plain: GraphModule
    explicit: GraphModule
    folded: GraphModule
    inputs: list[Any]
    plan: dict[LinearOp, RotationChoice]
    floats: list[FloatFold]
    sites: GraphSites
    proof: float

    def errors(self) -> tuple[float, float]:
        """Of explicit and folded against plain: largest difference over largest magnitude, over all outputs."""
        expected = _floats(run(self.plain, self.inputs))
        return tuple(max((float((a - b).abs().max() / b.abs().max()) for a, b in
                          zip(_floats(run(gm, self.inputs)), expected, strict=True)))
                     for gm in (self.explicit, self.folded))

    def left(self) -> list[Node]:
        """The rotations in the folded graph that are not of weights."""
        weights = [n for n in self.folded.graph.nodes if n.op == "placeholder" and isinstance(fake(n), nn.Parameter)]
        offline = from_weights(self.folded.graph, weights)
        return [n for n in rotations(self.folded.graph) if n not in offline]

    def choice(self, path: str) -> RotationChoice:
        """Of the one matmul whose path ends like this."""
        (found,) = [c for op, c in self.plan.items() if op.path.endswith(path)]
        return found


def run(gm: GraphModule, inputs: list[Any]) -> Any:
    with torch.no_grad():
        return gm(*inputs)


def _floats(outputs: Any) -> list[Tensor]:
    return [t for t in outputs if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]


def in_double(gm: GraphModule) -> None:
    """Casts to shorter floating point types become casts to float64, and so do the types the graph was traced with."""
    for node in gm.graph.nodes:
        if node.op == "call_method" and node.target == "float":
            node.target = "double"
        node.args = tuple(torch.float64 if a in FLOATS else a for a in node.args)
        node.kwargs = {k: torch.float64 if a in FLOATS else a for k, a in node.kwargs.items()}
    gm.recompile()


def rotate(model: nn.Module, *args: Any, rotation: Callable[[int], Hadamard] = choose, heads: bool = False,
           **kwargs: Any) -> Rotated:
    """Trace, plan, rotate every linear site (those outside the blocks only with ``heads``), and fold."""
    model = model.double().eval()
    args = tuple(_double(a) for a in args)
    gm, inputs = capture_one(model, *args, **{k: _double(v) for k, v in kwargs.items()})
    inputs = [i.node.hint if isinstance(i, torch.SymInt) else i for i in inputs]
    in_double(gm)
    expand_opaque(gm)
    canonicalize(gm)
    return rotate_graph(gm, inputs, rotation, heads)


def rotate_graph(gm: GraphModule, inputs: list[Any], rotation: Callable[[int], Hadamard] = choose,
                 heads: bool = False) -> Rotated:
    parameters = parameter_nodes(gm, inputs)
    sites = find_sites(gm, parameters)
    wanted = [site for site in sites.linears if heads or not any(op.is_head for op in site.ops)]
    wanted = [site for site in wanted if all(op.form in (Form.LINEAR, Form.CONV) for op in site.ops)]
    before = str(gm.graph)
    found = plan_rotations(gm, sites, wanted, rotation, parameters)
    plan = found.choices
    assert str(gm.graph) == before
    explicit, gains = _applied(gm, plan)
    graph, copies = copied(explicit)
    folded = GraphModule(explicit, graph)
    weights = {n for n in graph.nodes if n.op == "placeholder" and isinstance(fake(n), nn.Parameter)}
    rewritten = fold_rotations(folded, {copies[n]: (copies[w], offset) for n, (w, offset) in gains.items()}, weights)
    proof = difference(explicit, folded, copies, rewritten, inputs)
    return Rotated(gm, explicit, folded, inputs, plan, found.floats, sites, proof)


def _applied(gm: GraphModule, plan: dict[LinearOp, RotationChoice]
             ) -> tuple[GraphModule, dict[Node, tuple[Node, float]]]:
    """The graph with every rotation of the plan as a node and with rotated weights, and its gains."""
    graph, copies = copied(gm)
    target = GraphModule(gm, graph)
    made = insert_rotations(target, {op: c for op, c in plan.items() if op.form is Form.LINEAR}, copies)
    for op, choice in plan.items():
        if op.form is Form.CONV:
            _write_rotated(graph, op, choice, copies)
            continue
        node, weight, bias = copies[op.node], copies[op.weight], None if op.bias is None else copies[op.bias]
        norm = choice.norm
        with graph.inserting_before(node):
            operand = next(n for n in node.all_input_nodes if _shows(n, weight))
            gain = (None, 0.0) if norm is None else (copies[norm.weight], norm.weight_offset)
            out_in = op.node.target is torch.nn.functional.linear
            output = (0, None) if choice.output is None else astuple(choice.output)
            new = graph.call_function(rotated_weight, (operand, out_in, gain, astuple(choice.input), output))
            node.replace_input_with(operand, new)
            if bias is not None and choice.output is not None:
                node.replace_input_with(bias, graph.call_function(rotated_bias, (bias, output)))
    target.recompile()
    assert all(width_of(op) % c.input.block == 0 for op, c in plan.items())
    return target, made.gains


def _write_rotated(graph: Graph, op: LinearOp, choice: RotationChoice, copies: dict[Node, Node]) -> None:
    """A convolution with rotated results, turned back; its activation stays as it is."""
    node, output = copies[op.node], choice.output
    if output is None:
        return
    with graph.inserting_before(node):
        node.args = (node.args[0], *(graph.call_function(rotated_channels, (a, astuple(output)))
                                     for a in node.args[1:3]), *node.args[3:])
    with graph.inserting_after(node):
        rows = graph.call_function(torch.movedim, (node, 1, -1))
    with graph.inserting_after(rows):
        back = graph.call_function(HADAMARD, (rows, None, output.block, True))
    with graph.inserting_after(back):
        result = graph.call_function(conv_result, (back,))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not rows)


def rotated_channels(weight: Tensor, output: tuple[int, int | None]) -> Tensor:
    """Of a convolution's weight or bias, [N, ...]."""
    return rotated_bias(weight.movedim(0, -1), output).movedim(-1, 0)


def _shows(node: Node, weight: Node) -> bool:
    while node is not weight and node.op in ("call_function", "call_method") and isinstance(node.args[0], Node):
        node = node.args[0]
    return node is weight


def rotated_weight(operand: Tensor, out_in: bool, gain: tuple[Tensor | None, float], turned: tuple[int, int | None],
                   output: tuple[int, int | None]) -> Tensor:
    """The weight as the op reads it, [N, K] or [K, N], rotated; a block of 0 is no rotation."""
    w = operand if out_in else operand.transpose(-2, -1)
    if gain[0] is not None:
        w = w * (gain[0] + gain[1])
    w = Hadamard(*turned).apply(w)
    w = rotated_bias(w.transpose(-2, -1), output).transpose(-2, -1)
    return w if out_in else w.transpose(-2, -1)


def rotated_bias(bias: Tensor, output: tuple[int, int | None]) -> Tensor:
    return Hadamard(*output).apply(bias) if output[0] else bias


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
