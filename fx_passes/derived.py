"""Inputs of a quantized graph that are made from the model's tensors: packed integers, folded scales, wider biases.

They are ordinary graph inputs, never constants: who calls the graph looks them up by the identity and version of the
tensors they come from. Weights that read one quantized activation stand side by side as one wide weight; then what
belongs to the activation is the same for all and comes from the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from torchqx.inductor_kernels.int8_linear.pack import PANEL, column_sums, pack_int8_weight
from torchqx.storage import QuantizedWeight
from torchqx.transforms import OutputRotation

Build = Callable[[list[QuantizedWeight], list[Tensor | None]], Tensor]


@dataclass(frozen=True, eq=False)
class Derived:
    """``build`` of the quantized weights at ``weights`` and of the tensors at ``others`` (None where there is none)."""

    build: Build
    weights: tuple[Node, ...]
    others: tuple[Node | None, ...] = ()

    @property
    def sources(self) -> list[Node]:
        return [*self.weights, *(n for n in self.others if n is not None)]


def _beside(parts: list[Tensor]) -> Tensor:
    # Never a component itself: what is derived must not keep alive the tensor under which it is looked up.
    return parts[0].contiguous().detach() if len(parts) == 1 else torch.cat(parts)


def plain(weights: list[QuantizedWeight], _: list) -> Tensor:
    """int8 [N, K] or [E, N, K]."""
    return _beside([w.codes for w in weights])


def packed(weights: list[QuantizedWeight], _: list) -> Tensor:
    """int8 in the CPU kernel's order. Weights that hold it already share the memory, if they are whole panels."""
    if not all(w.packed and (len(weights) == 1 or w.matrix_shape[0] % PANEL == 0) for w in weights):
        return pack_int8_weight(plain(weights, _))
    wide = _beside([w.qdata for w in weights])
    for weight, part in zip(weights, wide.split([len(w.qdata) for w in weights]), strict=True):
        weight.share_packed(part)
    return wide


def weight_scale(weights: list[QuantizedWeight], _: list) -> Tensor:
    """float32 [N] or [E, N], also where one scale serves the whole tensor."""
    return _beside([_per_row(w, w.scale) for w in weights])


def weight_zero(weights: list[QuantizedWeight], _: list) -> Tensor:
    """int32 [N] or [N, K/g]."""
    return _beside([_per_row(w, w.zero_point.to(torch.int32)) for w in weights])


def _per_row(weight: QuantizedWeight, values: Tensor) -> Tensor:
    whole = weight.weight_spec.granularity == "tensor"
    return values.expand(weight.matrix_shape[:-1]).contiguous() if whole else values


def column_sum(weights: list[QuantizedWeight], _: list) -> Tensor:
    """int32 [N] or [E, N]."""
    return _beside([column_sums(w.codes) for w in weights])


def act_scale(weights: list[QuantizedWeight], _: list) -> Tensor:
    """float32 [1]."""
    return weights[0].act_scale.reshape(1)


def act_zero(weights: list[QuantizedWeight], _: list) -> Tensor:
    """int32 [1]."""
    return weights[0].act_zero_point.reshape(1)


def multiplier(weights: list[QuantizedWeight], _: list) -> Tensor:
    """1 / (s · scale), float32 [K] or [1]: the static quantizer's factor."""
    inverse = 1.0 / act_scale(weights, _)
    return inverse if weights[0].smooth is None else weights[0].smooth * inverse


def addend(weights: list[QuantizedWeight], _: list) -> Tensor:
    """zero point - z / (s · scale), float32 [K] or [1]."""
    zero = act_zero(weights, _).float()
    return zero if weights[0].shift is None else zero - weights[0].shift * multiplier(weights, _)


def signed_act_zero(weights: list[QuantizedWeight], _: list) -> Tensor:
    """int32 [1]: :func:`act_zero` for codes that are held around 0, as int8."""
    return act_zero(weights, _) - _middle(weights)


def signed_addend(weights: list[QuantizedWeight], _: list) -> Tensor:
    """float32 [K] or [1]: :func:`addend` for codes that are held around 0."""
    return addend(weights, _) - _middle(weights)


def _middle(weights: list[QuantizedWeight]) -> int:
    return 1 << (weights[0].activation_spec.bits - 1)


def smooth(weights: list[QuantizedWeight], _: list) -> Tensor:
    """1/s, float32 [K]."""
    return weights[0].smooth


def shift(weights: list[QuantizedWeight], _: list) -> Tensor:
    """z, float32 [K]."""
    return weights[0].shift.contiguous()


def norm(weights: list[QuantizedWeight], _: list) -> Tensor:
    """g, float32 [K]."""
    return weights[0].norm.contiguous()


def signs(weights: list[QuantizedWeight], _: list) -> Tensor:
    """Of the activation's rotation, float32 [K]."""
    # A copy: what is kept of a rotation belongs to no model.
    return weights[0].hadamard.signs(weights[0].matrix_shape[-1], weights[0].device).clone()


def output_signs(weights: list[QuantizedWeight], _: list) -> Tensor:
    """Of the result's rotation, float32 [N]."""
    return weights[0].output_hadamard.signs(weights[0].matrix_shape[-2], weights[0].device).clone()


def bias(weights: list[QuantizedWeight], biases: list[Tensor | None]) -> Tensor:
    """b + W z, float32 [N] or [E, N], rotated as the weight's results are; zeros where a weight has neither."""
    parts = []
    for weight, own in zip(weights, biases, strict=True):
        total = torch.zeros(weight.matrix_shape[:-1], device=weight.device)
        if own is not None:
            own = own.detach().float()
            total = total + (OutputRotation(weight.output_hadamard).bias(own) if weight.output_hadamard else own)
        if weight.shift_bias is not None:
            total = total + weight.shift_bias
        parts.append(total)
    return _beside(parts)


def dequantized(weights: list[QuantizedWeight], _: list) -> Tensor:
    """The float weight, for what does not run on the integers; it lies in memory as the float model's own."""
    return weights[0].dequantize().contiguous()


def dense_like(weight: QuantizedWeight) -> Tensor:
    """A fake weight -> the fake tensor that :func:`dequantized` makes of it."""
    return weight.qdata.new_empty(weight.shape, dtype=weight.dtype)
