"""What a recipe sees of a graph: sites. Nodes appear here and in the passes that rewrite them, nowhere else."""

from dataclasses import dataclass, field
from enum import StrEnum

from torch.fx import Node

from torchqx.layouts import WeightLayout


class Form(StrEnum):
    """How a weighted matmul is written; tells how rows [..., K] are read and results [..., N] written back.

    | form | graph | activation |
    |---|---|---|
    | LINEAR | linear(x, W, b), addmm(b, x, W), x @ W, baddbmm | [..., K] -> [..., N] |
    | LEFT | W @ x | [..., K, T] -> [..., N, T] |
    | CONV | conv with kernel equal to stride, no padding, one group | [B, C, *spatial] -> [B, N, *spatial'] |
    | EXPERTS | grouped matmul with stacked experts [E, ...] and offsets [E] | [T, K] -> [T, N] |
    """

    LINEAR = "linear"
    LEFT = "left"
    CONV = "conv"
    EXPERTS = "experts"


@dataclass(eq=False)
class LinearOp:
    """One weighted matmul.

    Attributes:
        node: the node whose value is the matmul's result, bias included.
        x: the activation it reads, as the op's own operand (shape as in :class:`Form`).
        weight: the placeholder of the parameter (views between it and the op are described by ``layout``).
        bias: node of the bias as it enters the op, or None.
        offsets: EXPERTS only: node of the rows' end offsets per expert, int32 [E].
        path: module path of the op, without the prefix of the compiled object ("encoder.layer.0.output.dense").
        key: site key of this one op: path + kind + ordinal, e.g. "encoder.layer.0.output.dense:linear:0".
        is_head: nothing weighted and no residual follows: a classifier, a pooler, or a vocabulary projection.
    """

    node: Node
    x: Node
    weight: Node
    bias: Node | None
    form: Form
    layout: WeightLayout
    path: str
    key: str
    offsets: Node | None = None
    is_head: bool = False


@dataclass(eq=False)
class LinearSite:
    """All weighted matmuls that read one activation. ``x`` is that activation, seen through views that keep its
    last dimension; it equals ``op.x`` for most ops. ``scan``: the state-space site whose result reaches ``x`` without
    another weighted matmul, gates and norms on the way. ``state_space``: whether it is part of a layer with a scan."""

    key: str
    x: Node
    ops: list[LinearOp]
    kind: str = "linear"
    scan: "ScanSite | None" = None
    state_space: bool = False


@dataclass(eq=False)
class NormSite:
    """A layer norm or an RMS norm, in any spelling.

    Attributes:
        node: the normalised, scaled (and shifted) result.
        x: what is normalised.
        weight, bias: placeholders, or None.
        style: "layer" or "rms".
        weight_offset: the value added to the weight before it multiplies (Gemma: 1.0), else 0.0.
        nodes: every node of the pattern, in graph order.
    """

    key: str
    node: Node
    x: Node
    weight: Node | None
    bias: Node | None
    eps: float
    style: str
    weight_offset: float = 0.0
    nodes: list[Node] = field(default_factory=list)
    kind: str = "norm"


@dataclass(eq=False)
class AttentionSite:
    """softmax(q kᵀ · scale + mask) v.

    Attributes:
        node: the result.
        q, k, v: [..., S, D]; k is [..., D, S] where ``key_transposed``.
        mask: the last term that acts on the scores before the softmax (added, or where scores are hidden), or None.
        biases: terms added earlier (ALiBi, relative positions), in order.
        scale: factor on q kᵀ, None where it is not a constant or the scores also pass a nonlinearity.
        spelling: "sdpa" or "softmax".
        nodes: every node of the pattern, in graph order; replaying them gives ``node`` exactly.
    """

    key: str
    node: Node
    q: Node
    k: Node
    v: Node
    mask: Node | None
    scale: float | None
    spelling: str
    nodes: list[Node] = field(default_factory=list)
    biases: list[Node] = field(default_factory=list)
    key_transposed: bool = False
    kind: str = "attention"


@dataclass(eq=False)
class ResidualSite:
    """A residual stream: additions in graph order, each the stream plus a branch's result."""

    key: str
    adds: list[Node]
    kind: str = "residual"


@dataclass(eq=False)
class ScanSite:
    """One call of a state-space model's scan, state update, or causal convolution.

    Attributes:
        node: the call; a scan's value is the pair (y, last state).
        kind: "scan" (prefill and decode alike, so that both have one key) or "conv".
        path: of the module whose code made the call.
        tensors: operand's role -> node, of what is computed from activations: x, dt, B, C, z; a conv's x.
        constants: operand's role -> node, of what is computed from parameters alone: A, D, bias; weight.
        carrier: the weighted matmul whose weight holds what is solved for the site: the first of the same module.
        x_readers: the linear sites that read a scan's x too.
    """

    key: str
    node: Node
    kind: str
    path: str
    tensors: dict[str, Node]
    constants: dict[str, Node]
    carrier: LinearOp | None
    x_readers: list[LinearSite] = field(default_factory=list)


@dataclass(eq=False)
class Unsupported:
    """A place with a parameter that looks like a site and is not handled, with the reason."""

    key: str
    node: Node
    reason: str
    kind: str


@dataclass
class GraphSites:
    """Everything found in one graph.

    Attributes:
        padding_mask: graph input [B, S] (integer, bool or float) that the attention masks are made of, or None.
        padding_mask_marks_padding: False where nonzero is a real token, True where nonzero is padding (what
            torch.nn.MultiheadAttention calls key_padding_mask).
        shared_weights: weight placeholders read by more than one op (tied embeddings, shared blocks) -> readers.
    """

    linears: list[LinearSite] = field(default_factory=list)
    norms: list[NormSite] = field(default_factory=list)
    attentions: list[AttentionSite] = field(default_factory=list)
    residuals: list[ResidualSite] = field(default_factory=list)
    scans: list[ScanSite] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)
    shared_weights: dict[Node, list[Node]] = field(default_factory=dict)
    padding_mask: Node | None = None
    padding_mask_marks_padding: bool = False
