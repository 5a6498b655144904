"""Planting outliers changes nothing but how large the tensors around the scans become."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.planted_scan import LOUD, planted
from benchmarks.train_mamba import VOCABULARY, build, text, unigram_loss, windows


def largest_inputs(model: nn.Module, name: str, rows: torch.Tensor) -> tuple[list[float], torch.Tensor]:
    """The largest input of each mixer's linear called ``name``, and the logits."""
    seen: list[float] = []
    for layer in model.backbone.layers:
        getattr(layer.mixer, name).register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    return seen, model(input_ids=rows, use_cache=False).logits


@pytest.mark.parametrize(("kind", "reader", "least"), [
    ("mamba", "x_proj", lambda _: LOUD), ("mamba", "out_proj", lambda before: 2 * before),
    ("mamba2", "out_proj", lambda before: LOUD / 10 * before),
])
@torch.no_grad()
def test_the_same_function_with_louder_tensors(kind: str, reader: str, least: Callable[[float], Any]) -> None:
    model, rows = build(kind).eval(), windows(held_out=True, count=2, length=9)
    loud = planted(model, rows)
    before, expected = largest_inputs(model, reader, rows)
    after, found = largest_inputs(loud, reader, rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(b >= least(a) for a, b in zip(before, after, strict=True))


@torch.no_grad()
def test_one_channel_of_every_head_is_loud() -> None:
    for layer in planted(build("mamba2").eval(), windows(held_out=True, count=1, length=9)).backbone.layers:
        mixer = layer.mixer
        biases = mixer.conv1d.bias[: mixer.intermediate_size].view(mixer.num_heads, mixer.head_dim)
        assert (biases == LOUD).sum(1).tolist() == [1] * mixer.num_heads


def test_the_text_is_bytes_of_two_parts() -> None:
    train, test = text(held_out=False), text(held_out=True)
    assert len(train) > 5 * len(test) > 50_000
    assert int(train.max()) < VOCABULARY
    assert 2.5 < unigram_loss() < 4
