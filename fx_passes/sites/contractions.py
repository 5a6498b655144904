"""Weighted matmuls, one at a time: a contraction with an operand that comes from a parameter."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from torchqx.fx_passes.sites.ops import argument, fake, is_mapped, op_name
from torchqx.fx_passes.sites.provenance import ParameterView, Provenance
from torchqx.fx_passes.sites.site import Form
from torchqx.layouts import WeightLayout

_MATRIX = (WeightLayout.OUT_IN, WeightLayout.IN_OUT, WeightLayout.CONV)
_EXPERTS = (WeightLayout.EXPERTS_OUT_IN, WeightLayout.EXPERTS_IN_OUT)


@dataclass(frozen=True)
class Contraction:
    """A weighted matmul without its names."""

    node: Node
    x: Node
    weight: Node
    bias: Node | None
    form: Form
    layout: WeightLayout
    offsets: Node | None = None


@dataclass(frozen=True)
class Refusal:
    """A weighted contraction that is not handled."""

    node: Node
    weight: Node | None
    reason: str


Found = Contraction | Refusal | None


def read_contraction(node: Node, provenance: Provenance) -> Found:
    """``node`` as a weighted matmul, as a refusal if its weight is used in a way that is not handled, else None."""
    if isinstance(node.target, HigherOrderOperator):
        return _refuse_parameters(node, provenance, "inside the higher-order op {name}, whose graph is not searched")
    name = op_name(node)
    if name in _READERS:
        found = _READERS[name](node, provenance)
        if isinstance(found, Contraction) and is_mapped(node):
            return Refusal(node, found.weight, "inside torch.func.vmap or grad, where no values are seen")
        return found
    if name in _REASONS:
        return _refuse_parameters(node, provenance, _REASONS[name])
    return None


def _refuse_parameters(node: Node, provenance: Provenance, reason: str) -> Found:
    weights = [weight for operand in node.all_input_nodes if (weight := provenance.source(operand)) is not None]
    if not weights:
        return None
    return Refusal(node, weights[0], reason.format(name=op_name(node) or node.target))


def _linear(node: Node, provenance: Provenance) -> Found:
    """linear(x, W [N, K], bias)."""
    x, w = argument(node, 0, "input"), argument(node, 1, "weight")
    bias = argument(node, 2, "bias")
    view = provenance.view(w)
    if view is None:
        return _computed(node, provenance, w)
    return _matrix(node, x, view, bias, Form.LINEAR, lambda shown: shown)


def _addmm(node: Node, provenance: Provenance) -> Found:
    """addmm(bias, x, W [K, N]) and baddbmm(bias, x, W [1 or repeated, K, N])."""
    batched = op_name(node) == "baddbmm"
    bias = argument(node, 0, "input")
    a, b = argument(node, 1, "batch1" if batched else "mat1"), argument(node, 2, "batch2" if batched else "mat2")
    found = _product(node, provenance, a, b, bias)
    scaled = argument(node, 3, "beta", default=1) != 1 or argument(node, 4, "alpha", default=1) != 1
    if isinstance(found, Contraction) and scaled:
        return Refusal(node, found.weight, f"{op_name(node)} with alpha or beta other than 1")
    if isinstance(found, Contraction) and found.form is Form.LEFT:
        return Refusal(node, found.weight, f"{op_name(node)} with the parameter on the left")
    return found


def _matmul(node: Node, provenance: Provenance) -> Found:
    """x @ W [K, N], or W [N, K] @ x."""
    a, b = argument(node, 0, "input", "self"), argument(node, 1, "other", "mat2", "vec")
    return _product(node, provenance, a, b, None)


def _product(node: Node, provenance: Provenance, a: Any, b: Any, bias: Any) -> Found:
    left, right = provenance.view(a), provenance.view(b)
    if left is not None and right is not None:
        return Refusal(node, right.weight, "both operands are parameters")
    if right is not None:
        if fake(b) is not None and fake(b).ndim == 1:
            return Refusal(node, right.weight, "the parameter is a vector")
        return _matrix(node, a, right, bias, Form.LINEAR, lambda shown: shown.transpose(-2, -1))
    if left is not None:
        vector = fake(b) is not None and fake(b).ndim == 1
        return _matrix(node, b, left, bias, Form.LINEAR if vector else Form.LEFT, lambda shown: shown)
    return _computed(node, provenance, b) or _computed(node, provenance, a)


def _matrix(
    node: Node, x: Any, view: ParameterView, bias: Any, form: Form, as_matrix: Callable[[Tensor], Tensor]
) -> Found:
    """A matmul with one [N, K] matrix, which ``as_matrix`` reads from the operand."""
    fits = view.view is not None and view.view.ndim == 2
    layout = view.layout(as_matrix(view.view), _MATRIX) if fits else None
    if layout is None or not isinstance(x, Node):
        return Refusal(node, view.weight, view.refusal())
    return Contraction(node, x, view.weight, bias, form, layout)


def _computed(node: Node, provenance: Provenance, weight: Any) -> Refusal | None:
    """A weight that is itself a result (weight norm, a merged adapter)."""
    if not provenance.is_derived(weight):
        return None
    return Refusal(node, None, f"the weight is computed in the graph (by {op_name(weight)})")


def _grouped(node: Node, provenance: Provenance) -> Found:
    """grouped_mm(x [T, K], W [E, K, N], offsets)."""
    x, w = argument(node, 0, "input", "self", "mat_a"), argument(node, 1, "weight", "mat2", "mat_b")
    view = provenance.view(w)
    if view is None:
        return _computed(node, provenance, w)
    offsets, bias = argument(node, 2, "offs"), argument(node, 3, "bias")
    stacked = view.view is not None and view.view.ndim == 3
    layout = view.layout(view.view.transpose(-2, -1), _EXPERTS) if stacked else None
    if layout is None or offsets is None:
        return Refusal(node, view.weight, "a grouped matmul that is not [T, K] by stacked experts with offsets")
    return Contraction(node, x, view.weight, bias, Form.EXPERTS, layout, offsets)


def _conv(node: Node, provenance: Provenance) -> Found:
    """A convolution whose kernel positions do not overlap is a matmul over each patch."""
    x, w, bias = argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias")
    weight = provenance.source(w)
    if weight is None:
        return _computed(node, provenance, w)
    kernel = provenance.parameters[weight].shape[2:]
    stride = _sizes(argument(node, 3, "stride", default=1), len(kernel))
    padding = argument(node, 4, "padding", default=0)
    dilation = _sizes(argument(node, 5, "dilation", default=1), len(kernel))
    groups = argument(node, 6, "groups", default=1)
    if groups != 1:
        return Refusal(node, weight, f"a grouped convolution ({groups} groups)")
    if w is not weight:
        return Refusal(node, weight, "a convolution whose kernel is a view of the parameter")
    if stride != tuple(kernel):
        patches = f"kernel {tuple(kernel)}, stride {stride}"
        return Refusal(node, weight, f"a convolution with overlapping or skipped patches ({patches})")
    unpadded = padding == "valid" or (padding == "same" and prod(kernel) == 1)
    if not unpadded and (isinstance(padding, str) or any(_sizes(padding, len(kernel)))):
        return Refusal(node, weight, "a convolution with padding")
    if any(step != 1 and size != 1 for step, size in zip(dilation, kernel, strict=True)):
        return Refusal(node, weight, "a dilated convolution")
    return _whole_patches(node, x, weight, bias, kernel)


def _whole_patches(node: Node, x: Node, weight: Node, bias: Any, kernel: tuple[int, ...]) -> Found:
    value = fake(x)
    if value is None or value.ndim != len(kernel) + 2:
        return Refusal(node, weight, "a convolution without a batch dimension")
    for size, patch in zip(value.shape[2:], kernel, strict=True):
        if patch > 1 and not statically_known_true(size % patch == 0):
            return Refusal(node, weight, f"an image of size {size} is not known to be whole patches of {patch}")
    return Contraction(node, x, weight, bias, Form.CONV, WeightLayout.CONV)


def _sizes(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value) * (count if len(value) == 1 else 1)


_READERS: dict[str, Callable[[Node, Provenance], Found]] = {
    "linear": _linear,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "grouped_mm": _grouped,
    "conv1d": _conv,
    "conv2d": _conv,
}

_FAST_PATH = "the fused inference op {name}; it stays where expand_opaque() has no exact expansion"

_REASONS = {
    "conv3d": "a convolution over three dimensions",
    "conv_transpose1d": "a transposed convolution",
    "conv_transpose2d": "a transposed convolution",
    "conv_transpose3d": "a transposed convolution",
    "einsum": "an einsum with a parameter",
    "tensordot": "tensordot with a parameter",
    "inner": "inner with a parameter",
    "bilinear": "a bilinear form",
    "addmv": "addmv with a parameter",
    "addbmm": "addbmm with a parameter",
    "lstm": "a recurrent network",
    "gru": "a recurrent network",
    "rnn_tanh": "a recurrent network",
    "rnn_relu": "a recurrent network",
    "multi_head_attention_forward": "an attention function that holds its own matmuls",
    "_native_multi_head_attention": _FAST_PATH,
    "_transformer_encoder_layer_fwd": _FAST_PATH,
}
