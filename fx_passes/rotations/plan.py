"""Which rotations to write into a model's weights so that they cost nothing in its graph.

Every activation that is asked for rotated is rotated; the question is where the rotation comes from. Matmuls can write
rotated results, residual streams, norms, and attention carry rotations (see ``carriers``), and a minimum cut finds what
to rotate so that the fewest elements are rotated by an op of their own.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.rotations.absorb import norm_before, take_out_norms
from torchqx.fx_passes.rotations.carriers import Carried, Shape, carried, operand
from torchqx.fx_passes.rotations.explicit import RotationChoice, insert_rotations
from torchqx.fx_passes.rotations.fold import copied, linears_behind_norms
from torchqx.fx_passes.rotations.frames import carriers_of, choose_frames, paired
from torchqx.fx_passes.rotations.functional import functionalize_additions
from torchqx.fx_passes.rotations.norms import scaled_norm
from torchqx.fx_passes.rotations.offline import from_weights
from torchqx.fx_passes.rotations.patches import rows_behind
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp, LinearSite, NormSite
from torchqx.fx_passes.sites.ops import fake, op_name
from torchqx.rotations import SMALLEST_BLOCK, Hadamard, choose

SMALLEST_GAIN = 1e-5  # of a norm's largest weight: results scaled by less have lost their digits in float16
LARGEST_OFFSET = 1.0  # of bias over weight, root mean square: more would drown what is normalised


@dataclass(frozen=True)
class FloatFold:
    """A float parameter that takes part in a rotated stream: ``reader`` (an op of the planned graph) needs a rotated
    copy of ``weight``."""

    reader: Node
    weight: Node
    rotation: Hadamard


@dataclass(frozen=True)
class RotationPlan:
    """A choice for every matmul, and the float parameters that are rotated with them."""

    choices: dict[LinearOp, RotationChoice]
    floats: list[FloatFold]


def plan_rotations(gm: GraphModule, sites: GraphSites, wanted: Collection[LinearSite],
                   rotation: Callable[[int], Hadamard] = choose, values: Mapping[Node, Tensor] | None = None,
                   heads: bool = True) -> RotationPlan:
    """A choice for every op of ``wanted``, and what else is rotated for it; ``gm`` stays as it is.

    Args:
        sites: of ``gm``, a float graph.
        wanted: sites whose activation is rotated, by ``rotation(K)`` where nothing better is found.
        values: placeholder -> float Parameter; without it no norm's weight is absorbed, and none else is rotated.
        heads: whether rows may be rotated head by head where that folds, instead of as a whole.
    """
    planning = _Planning(gm, sites, wanted, rotation, values or {})
    for shape, found in planning.candidates(heads):
        planning.settle(shape, found)
    return RotationPlan(planning.choices(), planning.floats)


class _Planning:
    def __init__(self, gm: GraphModule, sites: GraphSites, wanted: Collection[LinearSite],
                 rotation: Callable[[int], Hadamard], values: Mapping[Node, Tensor]) -> None:
        self.sites, self.rotation = sites, rotation
        self.ops = [op for site in wanted for op in site.ops]
        usable = [norm for norm in sites.norms if _invertible(norm, values)]
        first = {op: RotationChoice(rotation(width_of(op)), norm_before(op.x, usable)) for op in self.ops}
        self.made = {op: c if op.form is Form.LINEAR else replace(c, norm=None) for op, c in first.items()}
        self.graph, self.copies = copied(gm)
        target = GraphModule(gm, self.graph)
        functionalize_additions(target)
        inserted = insert_rotations(
            target, {op: c for op, c in self.made.items() if op.form is Form.LINEAR}, self.copies)
        weights = {self.copies[n] for n in values}
        take_out_norms(target, inserted.gains, linears_behind_norms(target, weights), always=True)
        self.offline = from_weights(self.graph, weights)
        self.originals = {copy: node for node, copy in self.copies.items()}
        self.floats: list[FloatFold] = []
        self.sinks = inserted.inputs

    def candidates(self, with_heads: bool) -> list[tuple[Shape, Hadamard]]:
        """Frames to try: one per length of a row, then one per length of a head, which serves rows of all heads."""
        rows = {width_of(op): self.made[op].input for op in self.sinks}
        heads = {fake(site.v).shape[-1]: None for site in self.sites.attentions if with_heads}
        frames = [(Shape(r.block, width if r.seed is not None else None), r) for width, r in rows.items()]
        for size in heads:
            head = choose(size) if isinstance(size, int) else Hadamard(1)
            if head.block >= SMALLEST_BLOCK:
                frames.append((Shape(head.block, None), head))
        return frames

    def settle(self, shape: Shape, rotation: Hadamard) -> None:
        """Fold what can be folded in one frame, among the ops that have no better place yet."""
        open_ops = [op for op in self.sinks if not self.made[op].folded and self._asks(op, shape, rotation)]
        sinks = {self.sinks[op]: self.sinks[op].args[0] for op in open_ops}
        free = {self.copies[rows]: op for op in self.ops if (rows := self._written(op, shape)) is not None}
        carriers = carriers_of(self.graph.nodes, lambda node: None if node in free else carried(node, shape))
        chosen = choose_frames(self.graph, carriers, (), free, sinks, self.offline)
        for op in open_ops:
            value = self.sinks[op].args[0]
            if value in chosen:
                self.made[op] = replace(self.made[op], input=rotation, folded=True, reason="")
            elif not self.made[op].reason:
                self.made[op] = replace(self.made[op], reason=reason_for(value, carriers))
        for node, op in free.items():
            if node in chosen:
                self.made[op] = replace(self.made[op], output=rotation)
        for node, found in carriers.items():
            slots = (*(found.slots if node in chosen else ()), *(found.paired if paired(node) in chosen else ()))
            for value in (operand(node, slot) for slot in slots):
                if value in self.offline and node in self.originals:  # not a norm's bias that was taken out
                    self.floats.append(FloatFold(self.originals[node], self.originals[_parameter(value)], rotation))

    def _asks(self, op: LinearOp, shape: Shape, rotation: Hadamard) -> bool:
        width = width_of(op)
        per_row = shape.width == width or (shape.width is None and rotation == self.made[op].input)
        return per_row or (shape.width is None and width % shape.block == 0 and rotation.seed is None)

    def _written(self, op: LinearOp, shape: Shape) -> Node | None:
        """The op's result as rows, where its weight can be rotated to write them in another frame."""
        rows = op.node if op.form is Form.LINEAR else rows_behind(op.node) if op.form is Form.CONV else None
        alone = op.weight not in self.sites.shared_weights and self.made[op].output is None
        vector = op.bias is None or (fake(op.bias) is not None and fake(op.bias).ndim == 1)
        return rows if rows is not None and alone and vector and shape.fits(fake(rows)) else None

    def choices(self) -> dict[LinearOp, RotationChoice]:
        """The plan: what did not fold is rotated in front of the matmul, and absorbs no norm for it."""
        unlike = self._unlike()
        for op, choice in self.made.items():
            if op.weight in unlike or not choice.folded:
                reason = "its weight is read at several places" if op.weight in unlike else choice.reason
                self.made[op] = RotationChoice(self.rotation(width_of(op)), output=choice.output,
                                               reason=reason or f"a matmul of the form {op.form}")
        return self.made

    def _unlike(self) -> set[Node]:
        """Weights that are read at several places for which different choices were made: they can hold only one."""
        seen: dict[Node, set[tuple]] = {}
        for op, c in self.made.items():
            norm = None if c.norm is None else (c.norm.weight, c.norm.weight_offset)
            seen.setdefault(op.weight, set()).add((c.input, norm if c.folded else None, c.folded))
        return {weight for weight, found in seen.items() if len(found) > 1}


def _parameter(value: Node) -> Node:
    """The parameter that ``value`` is, or is computed from first of all."""
    while value.op != "placeholder":
        value = value.all_input_nodes[0]
    return value


def width_of(op: LinearOp) -> int:
    """K: the length of the rows that a matmul reads."""
    return op.layout.to_matrix(torch.empty(op.weight.meta["example_value"].shape, device="meta")).shape[-1]


def _invertible(norm: NormSite, values: Mapping[Node, Tensor]) -> bool:
    """Whether a norm's result may be divided by its weight; (n g + b) / g = n + b/g is what its readers get then."""
    if norm.weight not in values or (norm.bias is not None and norm.bias not in values):
        return False
    gain = values[norm.weight].detach().double() + norm.weight_offset
    size = gain.abs()
    if not bool(torch.isfinite(gain).all()) or not bool(size.min() > SMALLEST_GAIN * size.max()):
        return False
    return norm.bias is None or bool((values[norm.bias].detach() / gain).square().mean().sqrt() <= LARGEST_OFFSET)


def reason_for(value: Node, carriers: Mapping[Node, Carried]) -> str:
    """Why a rotation of ``value`` does not come for free."""
    while value in carriers and len(carriers[value].slots) == 1:
        value = operand(value, carriers[value].slots[0])
    if value not in carriers:
        return f"{_words(value)} carries no rotation"
    region, queue, outside = {value}, [value], []
    while queue:
        node = queue.pop()
        inner = [operand(node, slot) for slot in carriers[node].slots]
        for other in (*inner, *node.users):
            if other not in carriers:
                outside.append(other)
            elif other not in region:
                region.add(other)
                queue.append(other)
    names = sorted({_words(node) for node in outside if node.op != "placeholder" and node.target is not HADAMARD})
    return f"rotating what it reads would cost more elsewhere: {', '.join(names[:4])}"


def _words(node: Node) -> str:
    if node.target is scaled_norm:
        return "a norm's weighted result"
    return {"output": "the graph's output", "placeholder": "an input"}.get(node.op, op_name(node))
