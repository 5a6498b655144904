"""One layer of real models with random weights: BERT's encoder layer, Llama's decoder layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


@dataclass(frozen=True)
class Shape:
    """Of one layer; ``inner`` is the width of its feed-forward part."""

    width: int
    heads: int
    inner: int
    kv_heads: int


BERT_BASE, LLAMA_7B = Shape(768, 12, 3072, 12), Shape(4096, 32, 11008, 32)
QUICK = Shape(32, 2, 64, 1)


class Encoder(nn.Module):
    """BERT's layer: hidden states [b, s, d] -> the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        config = BertConfig(hidden_size=shape.width, num_attention_heads=shape.heads, intermediate_size=shape.inner)
        config._attn_implementation = "sdpa"
        self.layer = BertLayer(config)

    def forward(self, x: Tensor) -> Tensor:
        return _first(self.layer(x))


class Decoder(nn.Module):
    """Llama's layer between its model's position embeddings and the next layer: [b, s, d] -> the same."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        config = LlamaConfig(hidden_size=shape.width, num_attention_heads=shape.heads,
                             num_key_value_heads=shape.kv_heads, intermediate_size=shape.inner)
        config._attn_implementation = "sdpa"
        self.layer = LlamaDecoderLayer(config, 0)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _first(self.layer(x, position_embeddings=(cos, sin)))


@dataclass(frozen=True)
class Kind:
    """A layer that is checked and timed."""

    name: str
    cls: type[Encoder | Decoder]
    shape: Shape

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The layer in eval mode; the same weights at every call, and biases that are not zero."""
        with torch.random.fork_rng(), torch.no_grad(), device:
            torch.manual_seed(0)
            layer = self.cls(self.shape)
            for module in layer.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                    module.bias.normal_(0.0, 0.1)
        return layer.to(dtype).eval()

    def inputs(self, batch: int, tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Hidden states whose channels differ in scale, as in trained models; for decoders cosines and sines too."""
        width, half = self.shape.width, self.shape.width // self.shape.heads // 2
        spread = torch.randn(width, generator=torch.Generator().manual_seed(0)).mul(0.5).exp()
        x = torch.randn(batch, tokens, width, device=device) * spread.to(device)
        if self.cls is Encoder:
            return (x.to(dtype),)
        frequencies = 1e4 ** (-torch.arange(half, device=device) / half)
        angles = torch.outer(torch.arange(tokens, device=device).float(), frequencies).repeat(1, 2)[None]
        return tuple(t.to(dtype) for t in (x, angles.cos(), angles.sin()))

    def weights(self) -> int:
        """Elements of the matrices."""
        s = self.shape
        attention = 2 * s.width**2 * (1 + s.kv_heads / s.heads)
        return int(attention + (2 if self.cls is Encoder else 3) * s.width * s.inner)

    def attention(self, batch: int, tokens: int) -> float:
        """Multiply-adds of scores and values: half of them where later tokens are masked."""
        return batch * tokens**2 * self.shape.width * (2.0 if self.cls is Encoder else 1.0)


def kinds(quick: bool) -> tuple[Kind, Kind]:
    """The encoder and the decoder."""
    return (Kind("encoder layer (BERT)", Encoder, QUICK if quick else BERT_BASE),
            Kind("decoder layer (Llama)", Decoder, QUICK if quick else LLAMA_7B))


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Older transformers return a tuple."""
    return result[0] if isinstance(result, tuple) else result
