"""Asymmetric outliers planted into a real model without changing what it computes: min-max breaks, OS+ recovers.

Chosen channels of the layer norms are multiplied and moved far off zero. Whatever reads such a norm takes that back:
the projections in their weights and biases, the residual streams by a hook in front of their addition.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchqx
from benchmarks.data import sick_pairs
from benchmarks.scores import encoder, sentence_batches
from tests.real_models import Loaded, need_data
from torchqx import MinMaxConfig, OutlierSuppressionPlusConfig

CHANNELS = torch.tensor([7, 100, 201, 350])
FACTOR = torch.tensor([6.0, 10.0, 8.0, 12.0])
TIMES = torch.tensor([100.0, -50.0, 70.0, -90.0])  # how far off zero, in the norm's usual gains


@torch.no_grad()
def plant(norm: nn.LayerNorm, projections: list[nn.Linear], residual: nn.Module) -> None:
    """y -> y · a + b at ``norm``; its readers see y: W y = (W / a)(y a + b) - (W / a) b."""
    a, b = torch.ones_like(norm.weight), torch.zeros_like(norm.weight)
    a[CHANNELS], b[CHANNELS] = FACTOR, TIMES * norm.weight.abs().median()
    norm.weight.mul_(a)
    norm.bias.mul_(a).add_(b)
    for layer in projections:
        layer.weight.div_(a)
        layer.bias.sub_(layer.weight @ b)
    residual.register_buffer("planted_factor", a)
    residual.register_buffer("planted_shift", b)
    residual.register_forward_pre_hook(_restore)


def _restore(module: Any, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return args[0], (args[1] - module.planted_shift) / module.planted_factor


def planted(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    before = model.embeddings.LayerNorm
    for layer in model.encoder.layer:
        own = layer.attention.self
        plant(before, [own.query, own.key, own.value], layer.attention.output)
        plant(layer.attention.output.LayerNorm, [layer.intermediate.dense], layer.output)
        before = layer.output.LayerNorm
    return model


@pytest.fixture(scope="module")
def data(minilm: Loaded) -> tuple[nn.Module, Any, list[dict[str, Tensor]], list[str]]:
    need_data("sick.tsv")
    model, tokenizer = minilm
    sentences = [pair.first for pair in sick_pairs(12)]
    calibration = [{k: v[:, :32] for k, v in batch.items()}
                   for batch in sentence_batches(tokenizer, [p.first for p in sick_pairs(96, start=1000)], 24)]
    return model, tokenizer, calibration, sentences


def test_planting_changes_nothing_and_makes_outliers(data: Any) -> None:
    model, _tokenizer, calibration, _sentences = data
    changed = planted(model)
    with torch.no_grad():
        expected, result = (m(**calibration[0]).last_hidden_state for m in (model, changed))
        normed = changed.encoder.layer[2].attention.output.LayerNorm(torch.randn(64, 384))
    assert float((result - expected).norm() / expected.norm()) < 1e-4
    usual = normed[:, [c for c in range(384) if c not in CHANNELS.tolist()]].std()
    assert bool((normed[:, CHANNELS].mean(0).abs() > 30 * usual).all())


def test_minmax_breaks_and_outlier_suppression_recovers(data: Any) -> None:
    model, tokenizer, calibration, sentences = data
    exact = encoder(model, tokenizer)(sentences)
    settings = {"activation": "static", "error_budget": 10.0, "error_limit": 10.0, "sample_rows": 256}
    recipes = {"minmax": MinMaxConfig(**settings), "os+": OutlierSuppressionPlusConfig(grid_steps=6, **settings)}
    scores = {}
    for name, recipe in recipes.items():
        for kind, source in (("plain", model), ("planted", planted(model))):
            torch._dynamo.reset()
            quantized = torchqx.quantize(copy.deepcopy(source), recipe, calibration)
            embeddings = encoder(quantized, tokenizer)(sentences)
            scores[name, kind] = float(torch.cosine_similarity(embeddings, exact).mean())
    assert scores["os+", "plain"] > 0.98
    assert scores["minmax", "planted"] < 0.95 * scores["minmax", "plain"]
    assert scores["os+", "planted"] > 0.99 * scores["os+", "plain"]
    shifted = [s for s in torchqx.explain(quantized).sites if "attention.self" in s.key and s.status == "quantized"]
    assert shifted
    assert all("shift" in s.transforms for s in shifted)
