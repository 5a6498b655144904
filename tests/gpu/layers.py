"""One quantized layer of real models, as torchqx's own pipeline lowers it for a GPU."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import torchqx
from torchqx.testing import GpuProgram, torchqx_on_gpu

WIDTH, INNER, HEADS, TOKENS = 64, 128, 4, 15
STATIC = torchqx.OutlierSuppressionPlusConfig(activation="static", shift=True, grid_steps=2, loss="linear",
                                              quantize_head=True)
TOKEN = torchqx.OutlierSuppressionPlusConfig(activation="token", shift=False, grid_steps=2, loss="linear",
                                             quantize_head=True)


@dataclass
class Layer:
    """``launches``, ``extern`` and ``tolerance`` are what it must have; ``build`` makes the float layer and inputs."""

    name: str
    build: Any
    recipe: Any
    launches: tuple[str, ...]
    extern: tuple[str, ...] = ("torch.ops.aten._scaled_dot_product_efficient_attention.default",)
    tolerance: float = 3e-3  # one code that rounds the other way is 1e-3


@dataclass
class LoweredLayer:
    """A program, its result for the inputs, and that of the quantized model in eager mode."""

    program: GpuProgram
    result: Tensor
    expected: Tensor


def _encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = transformers.BertConfig(hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=INNER)
    config._attn_implementation = "sdpa"
    return BertLayer(config).eval(), (torch.randn(2, TOKENS, WIDTH),)


class Decoder(nn.Module):
    """A Llama layer between its model's position embeddings and the next layer."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2,
                                          intermediate_size=INNER)
        config._attn_implementation = "sdpa"
        self.layer = LlamaDecoderLayer(config, 0)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.layer(x, position_embeddings=(cos, sin))


def _decoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    angles = torch.outer(torch.arange(TOKENS).float(), torch.rand(WIDTH // HEADS // 2)).repeat(1, 2)[None]
    return Decoder().eval(), (torch.randn(2, TOKENS, WIDTH), angles.cos(), angles.sin())


LAYERS = (
    Layer("encoder layer (BERT), static", _encoder, STATIC, (
        "pointwise", "template", "pointwise", "template", "persistent_reduction", "template", "template",
        "persistent_reduction")),
    Layer("decoder layer (Llama), per token", _decoder, TOKEN, (
        "persistent_reduction", "template", "pointwise", "pointwise", "pointwise", "persistent_reduction", "template",
        "persistent_reduction", "template", "persistent_reduction", "template")),
)


def lower_layer(layer: Layer, arch: str = "sm_90", interpreted: bool = True) -> LoweredLayer:
    """Calibrate, convert, compile with the torchqx backend for ``arch``, and call once (for zeros, or interpreted)."""
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = layer.build()
        torchqx.quantize(model, layer.recipe, [inputs])
    compiled = torch.compile(model, backend="torchqx", dynamic=False)
    with torch.no_grad(), torchqx_on_gpu(arch, interpreted=interpreted) as programs:
        result, expected = compiled(*inputs), model(*inputs)
    torch._dynamo.reset()
    assert len(programs) == 1
    result, expected = (r[0] if isinstance(r, tuple) else r for r in (result, expected))
    return LoweredLayer(programs[0], result, expected)
