"""Whole layers through the pipeline that users run: quantized on the device, compiled with the torchqx backend."""

import functools
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

import torchqx
from benchmarks.gpu.case import OURS, Case
from benchmarks.gpu.layers import Kind, kinds
from benchmarks.gpu.linear import TORCHAO_TUNING
from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Calls

SIZES, QUICK_SIZES = ((1, 128), (8, 128), (8, 512)), ((1, 7),)
CALIBRATION, QUICK_CALIBRATION = ((2, 128),) * 4, ((4, 64),) * 2


def cases(quick: bool) -> list[Case]:
    """The encoder and the decoder at every size. A layer's weights stay in the cache between calls if they fit."""
    return [_case(kind, *size) for kind in kinds(quick) for size in (QUICK_SIZES if quick else SIZES)]


@functools.cache
def quantized(kind: Kind, place: Place, dtype: torch.dtype) -> nn.Module:
    """The layer with the default recipe, static where its errors allow, calibrated on random hidden states."""
    sizes = QUICK_CALIBRATION if place.quick else CALIBRATION
    batches = [kind.inputs(*size, place.device, dtype) for size in sizes]
    return torchqx.quantize(kind.build(place.device, dtype), torchqx.OutlierSuppressionPlusConfig(), batches)


def _case(kind: Kind, batch: int, tokens: int) -> Case:
    def arms(place: Place) -> Mapping[str, Callable[[], Calls]]:
        dtype = torch.bfloat16
        inputs = kind.inputs(batch, tokens, place.device, dtype)

        def torchao() -> Calls:
            layer = kind.build(place.device, dtype)
            quantize_(layer, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
            return [partial(place.compiled(layer, **TORCHAO_TUNING), *inputs)]

        return {OURS: lambda: [partial(place.by_torchqx(quantized(kind, place, dtype)), *inputs)],
                "bf16": lambda: [partial(place.compiled(kind.build(place.device, dtype)), *inputs)],
                "torchao": torchao}

    rows = batch * tokens
    return Case(kind.name, f"{batch} x {tokens}", arms, moved=kind.weights() + 4 * rows * kind.shape.width,
                int8=rows * kind.weights(), bf16=kind.attention(batch, tokens))
