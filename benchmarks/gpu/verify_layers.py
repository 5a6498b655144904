"""Whole layers, quantized and compiled on the device, against the float layer and against themselves uncompiled."""

import torch
from torch import nn

import torchqx
from benchmarks.gpu.blocks import quantized
from benchmarks.gpu.check import Check, relative
from benchmarks.gpu.layers import Kind, kinds
from benchmarks.gpu.place import Place

SIZES, QUICK_SIZES = ((1, 1), (3, 63)), ((2, 63),)
# A float32 sum in another order may move a value across a rounding boundary: a code more or less, rarely.
SAME, NEAR = 2e-3, 0.02


def checks(place: Place) -> list[Check]:
    """For each layer: every linear is quantized; compiled it stays the same; and near the float layer it began as."""
    sizes = QUICK_SIZES if place.quick else SIZES
    # Random states average out over the tokens that attention sees: far fewer than in calibration are another range.
    return [check for kind in kinds(place.quick) for check in (
        _all_quantized(place, kind), *(_same(place, kind, *size) for size in sizes), _near(place, kind, *sizes[-1]))]


def _all_quantized(place: Place, kind: Kind) -> Check:
    def error() -> float:
        layer = quantized(kind, place, torch.bfloat16)
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        return float(sum(not isinstance(m.weight, torchqx.QuantizedWeight) for m in linears))

    return Check(f"{kind.name}: linears left in float", 0.0, error)


def _same(place: Place, kind: Kind, batch: int, tokens: int) -> Check:
    def error() -> float:
        layer = quantized(kind, place, torch.float32)
        inputs = kind.inputs(batch, tokens, place.device, torch.float32)
        return relative(place.by_torchqx(layer)(*inputs), layer(*inputs))

    return Check(f"{kind.name} {batch} x {tokens}: float32, compiled against itself in eager mode", SAME, error)


def _near(place: Place, kind: Kind, batch: int, tokens: int) -> Check:
    def error() -> float:
        inputs = kind.inputs(batch, tokens, place.device, torch.bfloat16)
        result = place.by_torchqx(quantized(kind, place, torch.bfloat16))(*inputs)
        exact = kind.build(place.device, torch.bfloat16).float()  # of the weights as bfloat16 holds them
        return relative(result, exact(*(t.float() for t in inputs)))

    return Check(f"{kind.name} {batch} x {tokens}: bfloat16, against the float layer", NEAR, error)
