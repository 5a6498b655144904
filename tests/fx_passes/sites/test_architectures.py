"""Every architecture: each weighted matmul, norm and attention is found, means what it says, and keeps its key."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from tests.architectures import ARCHITECTURES
from tests.capture import Recorder, capture_one
from tests.fx_passes.sites import recompute
from torchqx.fx_passes.expand import expand_opaque
from torchqx.fx_passes.sites import GraphSites, LinearOp, find_sites, parameter_nodes
from torchqx.fx_passes.sites.provenance import placeholder_parameters

BATCH, LENGTH = 2, 12


@cache
def model(name: str) -> nn.Module:
    return ARCHITECTURES[name].build()


def search(gm: GraphModule, example_inputs: list[Any]) -> GraphSites:
    expand_opaque(gm)
    return find_sites(gm, parameter_nodes(gm, example_inputs))


@cache
def prefill(name: str) -> tuple[GraphModule, list[Any], GraphSites]:
    gm, example_inputs = capture_one(model(name), **ARCHITECTURES[name].inputs(BATCH, LENGTH))
    return gm, example_inputs, search(gm, example_inputs)


def linear_ops(sites: GraphSites) -> list[LinearOp]:
    return [op for site in sites.linears for op in site.ops]


def keys(sites: GraphSites) -> dict[str, Any]:
    """Every key with what must not change under it."""
    found: dict[str, Any] = {}
    for site in sites.linears:
        found |= {f"op {op.key}": (op.form, op.layout, op.path, op.is_head, site.key) for op in site.ops}
    for kind in (sites.norms, sites.attentions):
        found |= {site.key: None for site in kind}
    return found | {site.key: len(site.adds) for site in sites.residuals}


def executed_matmuls(name: str) -> int:
    """Calls of modules that hold one weighted matmul, counted by hooks in an eager run."""
    calls = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal calls
        patches = not isinstance(module, nn.Conv1d | nn.Conv2d) or module.kernel_size == module.stride
        calls += patches

    hooked = [m for m in model(name).modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | Conv1D)]
    handles = [module.register_forward_hook(count) for module in hooked]
    with torch.no_grad():
        model(name)(**ARCHITECTURES[name].inputs(BATCH, LENGTH))
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_site_is_found(name: str) -> None:
    expected, (_, _, sites) = ARCHITECTURES[name], prefill(name)
    ops = linear_ops(sites)
    in_blocks = [op for op in ops if any(part.isdigit() for part in op.path.split("."))]
    assert len(in_blocks) == expected.in_blocks
    assert len(ops) == expected.in_blocks + expected.outside == executed_matmuls(name) + expected.bare
    assert len(sites.attentions) == expected.attentions
    assert len(sites.norms) == expected.norms
    assert tuple(len(site.adds) for site in sites.residuals) == expected.residuals
    assert [op.path for op in ops if op.is_head] == list(expected.heads)
    assert len(sites.unsupported) == expected.unsupported
    assert all(entry.reason for entry in sites.unsupported)
    assert (sites.padding_mask is not None) == expected.padded
    assert len({op.key for op in ops}) == len(ops)
    assert len({site.key for site in sites.linears}) == len(sites.linears)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_mean_what_they_say(name: str) -> None:
    gm, example_inputs, sites = prefill(name)
    values = recompute.Values(gm, example_inputs).of
    for op in linear_ops(sites):
        torch.testing.assert_close(recompute.linear(op, values), values[op.node], msg=op.key)
    for site in sites.norms:
        torch.testing.assert_close(recompute.norm(site, values), values[site.node], msg=site.key)
    for site in sites.attentions:
        if site.spelling == "softmax":
            torch.testing.assert_close(recompute.attention(site, values), values[site.node], msg=site.key)
    for site in sites.linears:
        for op in site.ops:
            rows, whole = values[op.x].flatten(), values[site.x].flatten()
            assert torch.equal(rows, whole), site.key


@pytest.mark.parametrize("name", ["bert", "mpnet", "clip_vision", "swin", "torch_encoder", "hand_written"])
def test_keys_do_not_depend_on_the_shapes(name: str) -> None:
    again = search(*capture_one(model(name), **ARCHITECTURES[name].inputs(BATCH + 1, LENGTH - 4)))
    assert keys(again) == keys(prefill(name)[2])


@pytest.mark.parametrize("name", ["opt", "bloom", "gpt2", "llama", "gemma3", "mixtral"])
def test_decoding_has_the_same_keys(name: str) -> None:
    inputs, cache = ARCHITECTURES[name].inputs(BATCH, LENGTH), DynamicCache(config=model(name).config)
    with torch.no_grad():
        model(name)(**inputs, past_key_values=cache, use_cache=True)
    step = {
        "input_ids": inputs["input_ids"][:, -1:],
        "attention_mask": nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
        "past_key_values": cache,
        "use_cache": True,
    }
    assert keys(search(*capture_one(model(name), **step))) == keys(prefill(name)[2])


@pytest.mark.parametrize("name", ["llama", "vit", "torch_encoder", "hand_written"])
def test_dynamic_shapes_have_the_same_keys(name: str) -> None:
    sites = search(*capture_one(model(name), dynamic=True, **ARCHITECTURES[name].inputs(BATCH, LENGTH)))
    assert keys(sites) == keys(prefill(name)[2])


@pytest.mark.parametrize("name", ["bert", "hand_written"])
def test_entry_points_have_the_same_keys(name: str) -> None:
    inputs, whole = ARCHITECTURES[name].inputs(BATCH, LENGTH), keys(prefill(name)[2])
    assert keys(search(*capture_one(model(name).forward, **inputs))) == whole
    held = model(name)
    assert keys(search(*capture_one(lambda **given: held(**given), **inputs))) == whole
    compiled, recorder = ARCHITECTURES[name].build(), Recorder()
    compiled.compile(backend=recorder)
    with torch.no_grad():
        compiled(**inputs)
    assert keys(search(*recorder.graphs[0])) == whole


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_eager_attention_is_found_as_well(name: str) -> None:
    spelled = ARCHITECTURES[name].build()
    spelled.set_attn_implementation("eager")
    sites = search(*capture_one(spelled, **ARCHITECTURES[name].inputs(BATCH, LENGTH)))
    assert {site.spelling for site in sites.attentions} == {"softmax"}
    assert keys(sites) == keys(prefill(name)[2])


@pytest.mark.parametrize("name", ["bert", "mixtral"])
def test_the_graph_is_left_as_it_is(name: str) -> None:
    gm, example_inputs, _ = prefill(name)
    before = str(gm.graph)
    find_sites(gm, parameter_nodes(gm, example_inputs))
    assert str(gm.graph) == before


def test_parameters_are_told_apart_without_example_inputs() -> None:
    gm, _, sites = prefill("bert")
    assert keys(find_sites(gm, placeholder_parameters(gm))) == keys(sites)
