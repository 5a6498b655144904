"""Small random-weight models, one per architecture that the site finder must cover, with inputs and expected counts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 128
WIDTH = 64
LAYERS = 2
HEADS = 4
INNER = 128
IMAGE = 32

Inputs = Callable[[int, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """``build()`` gives the model in eval mode; ``inputs(batch, length)`` its keyword arguments for a prefill.

    What one run has: ``in_blocks`` weighted matmuls inside the blocks and ``outside`` them (patches, projections),
    ``bare`` of all those with parameters that belong to no linear or convolution module; ``attentions``; ``norms``;
    ``residuals``: additions in each stream; ``heads``: paths of matmuls that nothing weighted follows;
    ``unsupported`` entries; ``padded``: whether a padding mask goes in; ``decoder``: whether it has a cache.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    in_blocks: int
    outside: int
    attentions: int
    norms: int
    residuals: tuple[int, ...]
    heads: tuple[str, ...] = ()
    bare: int = 0
    unsupported: int = 0
    padded: bool = False
    decoder: bool = False


def _tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


def _text(batch: int, length: int) -> dict[str, Tensor]:
    tokens = _tokens(batch, length)
    mask = torch.ones_like(tokens)
    mask[0, length - 2 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def _left_padded(batch: int, length: int) -> dict[str, Tensor]:
    inputs = _text(batch, length)
    inputs["attention_mask"] = inputs["attention_mask"].flip(-1)
    return inputs


def _image(batch: int, length: int) -> dict[str, Tensor]:
    """Images have one size; ``length`` is not used."""
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))}


def _text_pair(batch: int, length: int) -> dict[str, Tensor]:
    return _text(batch, length) | {"decoder_input_ids": _tokens(batch, length // 2)}


def _speech(batch: int, length: int) -> dict[str, Tensor]:
    features = torch.randn(batch, 16, 40, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": _tokens(batch, length)}


def _source(batch: int, length: int) -> dict[str, Tensor]:
    return {"src": torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(length))}


def _hidden(batch: int, length: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(length))}


def _build(config: str, model: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, model)._from_config(getattr(transformers, config)(**settings)).eval()


_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "image_size": IMAGE,
    "patch_size": 8,
}


def _hf(config: str, model: str, settings: dict[str, Any], **more: Any) -> Callable[[], nn.Module]:
    return partial(_build, config, model, **settings, **more)


def _torch_encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS).eval()


class _OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.gain


class _OwnBlock(nn.Module):
    """Every way of writing a weighted matmul that nn.Linear does not go through."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = _OwnNorm(), _OwnNorm()
        self.qkv = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 8)
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)
        self.bias = nn.Parameter(torch.zeros(INNER))
        self.up = nn.Parameter(torch.randn(WIDTH, INNER) / 8)
        self.down = nn.Conv1d(INNER, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (self.norm1(x) @ self.qkv).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // HEADS) ** 0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + mixed @ self.out
        x = x + (self.mix @ x.transpose(1, 2)).transpose(1, 2)
        inner = torch.addmm(self.bias, self.norm2(x).view(-1, width), self.up).relu().view(batch, length, -1)
        return x + self.down(inner.transpose(1, 2)).transpose(1, 2)


class _OwnModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_OwnBlock() for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _hand_written() -> nn.Module:
    torch.manual_seed(0)
    return _OwnModel().eval()


_STREAM = (2 * LAYERS,)
_LM = {"residuals": _STREAM, "heads": ("lm_head",), "padded": True, "decoder": True}
_POOLED = {"residuals": _STREAM, "heads": ("pooler.dense",), "padded": True}
_CLASSIFIED = {"residuals": _STREAM, "heads": ("classifier",)}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(_hf("BertConfig", "BertModel", _ENCODER), _text, 12, 1, 2, 5, **_POOLED),
    "mpnet": Architecture(_hf("MPNetConfig", "MPNetModel", _ENCODER), _text, 12, 1, 2, 5, **_POOLED),
    "opt": Architecture(
        _hf("OPTConfig", "OPTForCausalLM", _DECODER, ffn_dim=INNER, word_embed_proj_dim=WIDTH),
        *(_left_padded, 12, 1, 2, 5),
        **_LM,
    ),
    "bloom": Architecture(
        _hf(
            *("BloomConfig", "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": WIDTH}),
            **{"n_layer": LAYERS, "n_head": HEADS},
        ),
        *(_left_padded, 8, 1, 2, 6),
        **_LM,
    ),
    "gpt2": Architecture(
        _hf(
            *("GPT2Config", "GPT2LMHeadModel", {}),
            **{"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64},
            **{"bos_token_id": 1, "eos_token_id": 2},
        ),
        *(_left_padded, 8, 1, 2, 5),
        **_LM,
    ),
    "llama": Architecture(_hf("LlamaConfig", "LlamaForCausalLM", _DECODER), _left_padded, 14, 1, 2, 5, **_LM),
    "qwen3": Architecture(
        _hf("Qwen3Config", "Qwen3ForCausalLM", _DECODER, head_dim=16), _left_padded, 14, 1, 2, 9, **_LM
    ),
    "mistral": Architecture(
        _hf("MistralConfig", "MistralForCausalLM", _DECODER, sliding_window=32), _left_padded, 14, 1, 2, 5, **_LM
    ),
    "gemma3": Architecture(
        _hf(
            *("Gemma3TextConfig", "Gemma3ForCausalLM", _DECODER),
            **{"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        *(_left_padded, 14, 1, 2, 13),
        **_LM,
    ),
    "mixtral": Architecture(
        _hf("MixtralConfig", "MixtralForCausalLM", _DECODER, num_local_experts=4, num_experts_per_tok=2),
        *(_left_padded, 14, 1, 2, 5),
        bare=6,  # router and two stacks of experts, in each layer
        **_LM,
    ),
    "vit": Architecture(
        _hf("ViTConfig", "ViTForImageClassification", _VISION, num_labels=10), _image, 12, 2, 2, 5, **_CLASSIFIED
    ),
    "deit": Architecture(
        _hf("DeiTConfig", "DeiTForImageClassification", _VISION, num_labels=10), _image, 12, 2, 2, 5, **_CLASSIFIED
    ),
    "swin": Architecture(
        _hf(
            *("SwinConfig", "SwinForImageClassification", {"image_size": IMAGE, "patch_size": 2, "num_labels": 10}),
            **{"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        ),
        *(_image, 13, 2, 2, 7, (2, 2), ("classifier",)),
    ),
    "clip_vision": Architecture(_hf("CLIPVisionConfig", "CLIPVisionModel", _VISION), _image, 12, 1, 2, 6, _STREAM),
    "dinov2": Architecture(_hf("Dinov2Config", "Dinov2Model", _VISION, mlp_ratio=2), _image, 12, 1, 2, 5, _STREAM),
    "whisper": Architecture(
        _hf(
            *("WhisperConfig", "WhisperForConditionalGeneration"),
            {"vocab_size": VOCABULARY, "num_mel_bins": 16, "d_model": WIDTH, "encoder_layers": LAYERS},
            **{"decoder_layers": LAYERS, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS},
            **{"encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "max_source_positions": 20},
            **{"max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            decoder_start_token_id=1,
        ),
        *(_speech, 32, 1, 6, 12, (2 * LAYERS, 3 * LAYERS), ("proj_out",)),
        unsupported=2,  # overlapping convolutions
    ),
    "t5": Architecture(
        _hf(
            *("T5Config", "T5ForConditionalGeneration", {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 16}),
            **{"d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS, "decoder_start_token_id": 0},
        ),
        *(_text_pair, 32, 1, 6, 12, (2 * LAYERS, 3 * LAYERS), ("lm_head",)),
        padded=True,
    ),
    "torch_encoder": Architecture(_torch_encoder, _source, 8, 0, 2, 4, _STREAM, bare=4),
    "hand_written": Architecture(_hand_written, _hidden, 10, 1, 2, 4, (3 * LAYERS,), ("head",), bare=8),
}
