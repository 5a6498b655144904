"""Inputs of a quantized graph that are made from the model's tensors: packed integers, folded scales, wider biases.

They are ordinary graph inputs, never constants: who calls the graph looks them up by the identity and version of the
tensors they come from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torchqx.inductor_kernels.int8_linear.pack import column_sums, pack_int8_weight

from torchqx.storage import QuantizedWeight


@dataclass(frozen=True, eq=False)
class Derived:
    """``build`` of the values at ``sources``; the first is a quantized weight, the others are taken as they are."""

    name: str
    sources: tuple[Node, ...]
    build: Callable[..., Tensor]


def plain(weight: QuantizedWeight) -> Tensor:
    """int8 [N, K] or [E, N, K]."""
    return weight.qdata


def packed(weight: QuantizedWeight) -> Tensor:
    """int8 in the CPU kernel's order."""
    return pack_int8_weight(weight.qdata)


def weight_scale(weight: QuantizedWeight) -> Tensor:
    """float32 [N] or [E, N], also where one scale serves the whole tensor."""
    rows = weight.qdata.shape[:-1]
    return weight.scale.expand(rows).contiguous() if weight.scale.numel() == 1 else weight.scale


def grouped_scale(weight: QuantizedWeight) -> Tensor:
    """float32 [N] or [N, K/g]."""
    return weight_scale(weight) if weight.weight_spec.group_size is None else weight.scale


def weight_zero(weight: QuantizedWeight) -> Tensor:
    """int32, shaped as :func:`grouped_scale`."""
    return weight.zero_point.to(torch.int32).expand(grouped_scale(weight).shape).contiguous()


def column_sum(weight: QuantizedWeight) -> Tensor:
    """int32 [N] or [E, N]."""
    return column_sums(weight.qdata)


def act_scale(weight: QuantizedWeight) -> Tensor:
    """float32 [1]."""
    return weight.act_scale.reshape(1)


def act_zero(weight: QuantizedWeight) -> Tensor:
    """int32 [1]."""
    return weight.act_zero_point.reshape(1)


def multiplier(weight: QuantizedWeight) -> Tensor:
    """1 / (s · scale), float32 [K] or [1]: the static quantizer's factor."""
    inverse = 1.0 / act_scale(weight)
    return inverse if weight.smooth is None else weight.smooth * inverse


def addend(weight: QuantizedWeight) -> Tensor:
    """zero point - z / (s · scale), float32 [K] or [1]."""
    zero = act_zero(weight).float()
    return zero if weight.shift is None else zero - weight.shift * multiplier(weight)


def smooth(weight: QuantizedWeight) -> Tensor:
    """1/s, float32 [K]."""
    return weight.smooth


def shift(weight: QuantizedWeight) -> Tensor:
    """z, float32 [K]."""
    return weight.shift.contiguous()


def bias(weight: QuantizedWeight, own: Tensor | None = None) -> Tensor:
    """b + W z, float32 [N] or [E, N]."""
    total = weight.shift_bias
    if own is not None:
        total = own.detach().float() if total is None else total + own.detach().float()
    return total.contiguous()


def dequantized(weight: QuantizedWeight) -> Tensor:
    """The float weight, for readers that are not weighted matmuls."""
    return weight.dequantize()
