"""Opaque attention functions compute the same when expanded, and their parts get the unfused code's keys."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.capture import capture_one
from torchqx.fx_passes.expand import expand_opaque
from torchqx.fx_passes.sites import GraphSites, find_sites, parameter_nodes

E, HEADS = 24, 3
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


def expanded(code: Callable[..., Any], *args: Tensor, **kwargs: Any) -> GraphSites:
    """Sites after the expansion, which must not change what the graph computes."""
    gm, example_inputs = capture_one(code, *args, **kwargs)
    with torch.no_grad():
        before = gm(*example_inputs)
        after = expand_opaque(gm)(*example_inputs)
    torch.testing.assert_close(after, before)
    assert all("example_value" in node.meta for node in gm.graph.nodes if node.op != "output")
    return find_sites(gm, parameter_nodes(gm, example_inputs))


def keys(sites: GraphSites) -> list[str]:
    found = [op.key for site in sites.linears for op in site.ops]
    return found + [site.key for kind in (sites.norms, sites.attentions, sites.residuals) for site in kind]


def encoder(norm_first: bool, activation: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(E, HEADS, 40, batch_first=True, norm_first=norm_first, activation=activation)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()


@pytest.mark.parametrize(("norm_first", "activation"), [(False, "relu"), (True, "gelu")])
def test_fast_path_has_the_unfused_keys(norm_first: bool, activation: str) -> None:
    model, x = encoder(norm_first, activation), torch.randn(2, 5, E)
    fast = expanded(model, x)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow = expanded(model, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert keys(fast) == keys(slow)
    assert keys(fast)[:2] == ["layers.0.self_attn:linear:0", "layers.0.self_attn:linear:1"]


def test_padding_is_found_behind_the_fast_path() -> None:
    gm, example_inputs = capture_one(encoder(False, "relu"), torch.randn(2, 5, E), src_key_padding_mask=PADDING)
    with torch.no_grad():
        before = gm(*example_inputs)[0]
        after = expand_opaque(gm)(*example_inputs)[0]
    torch.testing.assert_close(after[~PADDING], before[~PADDING])
    sites = find_sites(gm, parameter_nodes(gm, example_inputs))
    assert sites.padding_mask is not None
    assert sites.padding_mask_marks_padding


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": False},
        {"need_weights": False, "key_padding_mask": PADDING},
        {"need_weights": False, "attn_mask": CAUSAL, "key_padding_mask": PADDING.float()},
        {"attn_mask": CAUSAL.isinf().expand(2 * HEADS, 5, 5), "average_attn_weights": False},
    ],
)
def test_self_attention(options: dict[str, Any]) -> None:
    module = nn.MultiheadAttention(E, HEADS, batch_first=True).eval()
    sites = expanded(lambda x: module(x, x, x, **options), torch.randn(2, 5, E, requires_grad=True))
    assert keys(sites) == [":linear:0", ":linear:1", ":attention:0"]
    assert not sites.unsupported


def test_attention_without_a_batch() -> None:
    module = nn.MultiheadAttention(E, HEADS).eval()
    assert keys(expanded(lambda x: module(x, x, x)[0], torch.randn(5, E))) == [":linear:0", ":linear:1", ":attention:0"]


def test_cross_attention_reads_slices_of_one_parameter() -> None:
    module = nn.MultiheadAttention(E, HEADS).eval()
    sites = expanded(lambda x, y: module(x, y, y)[0], torch.randn(4, 2, E), torch.randn(5, 2, E))
    assert keys(sites) == [":linear:0", ":attention:0"]
    assert ["slice" in entry.reason for entry in sites.unsupported] == [True] * 3


def test_other_widths_have_parameters_of_their_own() -> None:
    module = nn.MultiheadAttention(E, HEADS, kdim=7, vdim=9).eval()
    inputs = torch.randn(4, 2, E), torch.randn(5, 2, 7), torch.randn(5, 2, 9)
    assert len(expanded(lambda x, y, z: module(x, y, z)[0], *inputs).linears) == 4


def test_what_has_no_expansion_is_reported() -> None:
    module = nn.MultiheadAttention(E, HEADS, add_zero_attn=True).eval()
    sites = expanded(lambda x: module(x, x, x)[0], torch.randn(4, 2, E))
    assert not sites.linears
    assert "holds its own matmuls" in sites.unsupported[0].reason
