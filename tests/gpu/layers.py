"""One quantized layer of real models, as torchqx's own pipeline lowers it for a GPU."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import torchqx
from benchmarks.gpu.layers import Decoder, Encoder, Kind, Shape
from torchqx.testing import GpuProgram, torchqx_on_gpu

SHAPE = Shape(width=64, heads=4, inner=128, kv_heads=2)
ENCODER, DECODER = Kind("encoder layer (BERT)", Encoder, SHAPE), Kind("decoder layer (Llama)", Decoder, SHAPE)
TOKENS, CPU = 15, torch.device("cpu")
STATIC = torchqx.OutlierSuppressionPlusConfig(activation="static", shift=True, grid_steps=2, loss="linear",
                                              quantize_head=True)
TOKEN = torchqx.OutlierSuppressionPlusConfig(activation="token", shift=False, grid_steps=2, loss="linear",
                                             quantize_head=True)


@dataclass
class Layer:
    """``launches``, ``extern`` and ``tolerance`` are what it must have, under ``recipe``, which ``how`` sums up."""

    kind: Kind
    how: str
    recipe: Any
    launches: tuple[str, ...]
    extern: tuple[str, ...] = ("torch.ops.aten._scaled_dot_product_efficient_attention.default",)
    tolerance: float = 3e-3  # one code that rounds the other way is 1e-3

    @property
    def name(self) -> str:
        return f"{self.kind.name}, {self.how}"


@dataclass
class LoweredLayer:
    """A program, its result for the inputs, and that of the quantized model in eager mode."""

    program: GpuProgram
    result: Tensor
    expected: Tensor


LAYERS = (
    Layer(ENCODER, "static", STATIC, (
        "pointwise", "template", "pointwise", "template", "persistent_reduction", "template", "template",
        "persistent_reduction")),
    Layer(DECODER, "per token", TOKEN, (
        "persistent_reduction", "template", "pointwise", "pointwise", "pointwise", "persistent_reduction", "template",
        "persistent_reduction", "template", "persistent_reduction", "template")),
    # A rotation and the quantizer behind it are one template, but the norm's sum of squares stands before it.
    Layer(DECODER, "rotated, per token", torchqx.HadamardConfig(), (
        "persistent_reduction", "template", "template", "pointwise", "pointwise", "pointwise", "template", "template",
        "persistent_reduction", "template", "template", "template", "template")),
)


def lower_layer(layer: Layer, arch: str = "sm_90", interpreted: bool = True) -> LoweredLayer:
    """Calibrate, convert, compile with the torchqx backend for ``arch``, and call once (for zeros, or interpreted)."""
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = layer.kind.build(CPU, torch.float32)
        inputs = layer.kind.inputs(2, TOKENS, CPU, torch.float32)
        torchqx.quantize(model, layer.recipe, [inputs])
    compiled = torch.compile(model, backend="torchqx", dynamic=False)
    with torch.no_grad(), torchqx_on_gpu(arch, interpreted=interpreted) as programs:
        result, expected = compiled(*inputs), model(*inputs)
    torch._dynamo.reset()
    assert len(programs) == 1
    return LoweredLayer(programs[0], result, expected)
