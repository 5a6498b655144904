"""Whole models in float64: the rotated model, with explicit rotations and folded, is the model; and how much folds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from tests.architectures import ARCHITECTURES
from tests.fx_passes.rotations.rotate import Rotated, rotate, with_signs
from torchqx.fx_passes.prove import TOLERANCE
from torchqx.rotations import choose

LAYERS = 2


@dataclass(frozen=True)
class Expected:
    """Rotations of activations in the folded graph, and how many matmuls' input rotations folded; of all 7 matmuls in a
    gated layer, of all 6 (or 4, with one for queries, keys and values) in a plain one; and the float weights rotated,
    reader by reader."""

    left: int
    folded: int
    explicit: int
    floats: tuple[str, ...] = ()


# A folded stream is rotated in the weights where it begins and ends; down_proj's input is rotated in each layer.
STREAM = {"left": LAYERS}
EXPECTED = {
    "llama": Expected(**STREAM, folded=6 * LAYERS, explicit=13, floats=("embed_tokens", "lm_head")),
    "llama tied": Expected(**STREAM, folded=6 * LAYERS, explicit=13, floats=("embed_tokens", "embed_tokens")),
    "qwen3": Expected(**STREAM, folded=6 * LAYERS, explicit=13, floats=("embed_tokens", "lm_head")),
    "gemma": Expected(**STREAM, folded=6 * LAYERS, explicit=13, floats=("embed_tokens", "embed_tokens")),
    "opt": Expected(**STREAM, folded=5 * LAYERS, explicit=13,
                    floats=("embed_tokens", "embed_positions", "embed_tokens")),
    "gpt2": Expected(**STREAM, folded=3 * LAYERS, explicit=13, floats=("wte", "wpe", "wte")),
    "vit": Expected(**STREAM, folded=5 * LAYERS, explicit=13,
                    floats=("cls_token", "position_embeddings", "classifier")),
    # A norm's weighted result begins the stream, and its heads are merged by a slice.
    "bloom": Expected(left=1 + 2 * LAYERS, folded=2 * LAYERS, explicit=11, floats=("word_embeddings",)),
    # The stream is a norm's weighted result (BERT), or ends every branch in one (Gemma 3): only v -> out folds.
    "bert": Expected(left=3 * LAYERS, folded=LAYERS, explicit=10),
    "gemma3": Expected(left=3 * LAYERS, folded=LAYERS, explicit=10),
}


def _other(name: str) -> tuple[Callable[[], nn.Module], Any]:
    llama = ARCHITECTURES["llama"]
    if name == "llama tied":
        return lambda: llama.build.func(*llama.build.args, **llama.build.keywords, tie_word_embeddings=True), llama
    names = "GemmaConfig", "GemmaForCausalLM"
    return lambda: llama.build.func(*names, **llama.build.keywords, head_dim=16), llama


def _model(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """With random norm weights and biases: fresh ones are all one and zero."""
    build, architecture = (ARCHITECTURES[name].build, ARCHITECTURES[name]) if name in ARCHITECTURES else _other(name)
    model = build()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, *((-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)))
    return model, architecture.inputs(2, 8) | ({"use_cache": False} if architecture.decoder else {})


@cache
def rotated(name: str, seeded: bool = False) -> Rotated:
    torch.manual_seed(0)
    model, inputs = _model(name)
    return rotate(model, rotation=with_signs if seeded else choose, **inputs)


@pytest.mark.parametrize("name", EXPECTED)
def test_rotated_model_is_the_model(name: str) -> None:
    graph = rotated(name)
    assert max(graph.errors()) < TOLERANCE
    assert graph.proof < TOLERANCE
    expected = EXPECTED[name]
    explicit = [n for n in graph.explicit.graph.nodes if n.target is torch.ops.torchqx.hadamard.default]
    assert (len(graph.left()), sum(c.folded for c in graph.plan.values())) == (expected.left, expected.folded)
    assert len(graph.floats) == len(expected.floats)
    assert all(name in str(f.weight) for name, f in zip(expected.floats, graph.floats, strict=True))
    assert len(explicit) >= expected.explicit > expected.left
    assert all(bool(c.reason) is not c.folded for c in graph.plan.values())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_random_signs(name: str) -> None:
    graph = rotated(name, seeded=True)
    assert max(graph.errors()) < TOLERANCE
    assert graph.proof < TOLERANCE
    assert len(graph.left()) == EXPECTED[name].left


def test_reasons() -> None:
    assert rotated("llama").choice("layers.0.mlp.down_proj").reason == "mul carries no rotation"
    assert "a norm's weighted result" in rotated("bert").choice("layer.1.attention.self.query").reason
    assert "a norm's weighted result" in rotated("gemma3").choice("layers.1.mlp.up_proj").reason


def test_grouped_query_heads_rotate_by_head() -> None:
    graph = rotated("llama")
    value, out = graph.choice("layers.0.self_attn.v_proj"), graph.choice("layers.0.self_attn.o_proj")
    assert value.output == out.input == choose(16)
    assert out.output == graph.choice("layers.0.mlp.up_proj").input == choose(64)


def test_a_returned_cache_holds_plain_values() -> None:
    """Values go out in their own coordinates: one rotation of them, which is less than one of the attention's result
    where heads share keys and values."""
    model, inputs = _model("llama")
    graph = rotate(model, **inputs | {"use_cache": True})
    assert max(graph.errors()) < TOLERANCE
    assert graph.proof < TOLERANCE
    assert len(graph.left()) == EXPECTED["llama"].left + LAYERS


def test_decoding_step() -> None:
    model, inputs = _model("llama")
    with torch.no_grad():
        cache = model.double()(**inputs | {"use_cache": True}).past_key_values
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    graph = rotate(model, input_ids=inputs["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)
    assert max(graph.errors()) < TOLERANCE
    assert graph.proof < TOLERANCE
    assert graph.choice("layers.0.mlp.up_proj").folded
    assert not graph.choice("layers.0.self_attn.o_proj").folded  # all earlier values would have to be rotated


def test_symbolic_sizes() -> None:
    model, inputs = _model("llama")
    graph = rotate(model, dynamic=True, **inputs)
    assert max(graph.errors()) < TOLERANCE
    assert len(graph.left()) == EXPECTED["llama"].left

