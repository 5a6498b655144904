"""stories260K: a trained Llama of 0.26M parameters, small enough to run every recipe in seconds.

It comes as two files outside the repository, ``stories260K.bin`` (weights) and ``tok512.bin`` (tokenizer).
"""

import re
import struct
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.data import model_file, tiny_stories

_HEADER = struct.Struct("<7i")
_TOKEN = struct.Struct("<fi")
_START = 1  # stands before each story
_FIRST_BYTE = 3  # tokens 3 to 258 are the 256 bytes


class StoriesTokenizer:
    """Byte-pair encoding with 512 tokens: of two neighbours, those whose union has the best score merge first."""

    def __init__(self) -> None:
        raw = model_file("tok512.bin").read_bytes()
        self.tokens: dict[bytes, tuple[float, int]] = {}
        place = 4  # past the length of the longest token
        while place < len(raw):
            score, length = _TOKEN.unpack_from(raw, place)
            place += _TOKEN.size + length
            self.tokens[raw[place - length : place]] = score, len(self.tokens)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``, which begins like every word: after a space. No token has a space further in."""
        return [token for word in text.split(" ") for token in self._word(" " + word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = self._merged([letter.encode() for letter in word])
        return self._known[word]

    def _merged(self, parts: list[bytes]) -> list[int]:
        while True:
            found = [(self.tokens[a + b][0], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in self.tokens]
            if not found:
                break
            i = -max(found)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [token for part in parts for token in self._ids(part)]

    def _ids(self, part: bytes) -> list[int]:
        return [self.tokens[part][1]] if part in self.tokens else [_FIRST_BYTE + byte for byte in part]


def story_windows(count: int, length: int = 512) -> Tensor:
    """The first ``count`` windows of ``length`` tokens of stories one after the other: int64 [count, length].

    As in the model's training, a token starts each story, and one line break parts its paragraphs (the file has two).
    Raises ``DataMissingError`` when a file is absent, ``ValueError`` when the text is too short.
    """
    tokenizer = StoriesTokenizer()
    parts = re.split(r"\n\n(?=Once upon|One day, a )", tiny_stories())
    told = [token for part in parts for token in (_START, *tokenizer.encode(re.sub(r"\n+", "\n", part.strip())))]
    if len(told) < count * length:
        raise ValueError(f"{len(told)} tokens are too few for {count} windows of {length}")
    return torch.tensor(told[: count * length]).view(count, length)


def stories() -> PreTrainedModel:
    """The model in float32 and eval mode: 5 layers, d 64, 8 heads on 4 KV heads, tied head.

    Raises ``DataMissingError`` when its file is absent.
    """
    raw = model_file("stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = _HEADER.unpack_from(raw)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=positions,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    values = torch.from_numpy(np.frombuffer(raw, "<f4", offset=_HEADER.size).copy())
    kv = dim * kv_heads // heads
    sizes = {
        "model.embed_tokens": (vocabulary, dim), "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim), "self_attn.k_proj": (layers, kv, dim),
        "self_attn.v_proj": (layers, kv, dim), "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim), "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden), "mlp.up_proj": (layers, hidden, dim), "model.norm": (dim,),
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for name, size in sizes.items():
        tensor, values = values[: torch.Size(size).numel()].view(size), values[torch.Size(size).numel() :]
        if name.startswith("model."):
            state[f"{name}.weight"] = tensor
            continue
        for layer, weight in enumerate(tensor):
            neighbours = name.endswith(("q_proj", "k_proj"))
            state[f"model.layers.{layer}.{name}.weight"] = _halves(weight, dim // heads) if neighbours else weight
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)  # noqa: PT018
    model.tie_weights()
    return model


def _halves(weight: Tensor, width: int) -> Tensor:
    """Rows of queries or keys whose neighbours RoPE turns together -> those of transformers, which turns halves."""
    return weight.view(-1, width // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
