"""Regions cut out of graphs: replayed on the site's own outputs they give what the graph computed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.architectures import ARCHITECTURES
from tests.capture import capture_one
from tests.fx_passes.rewrite import Code
from torchqx.fx_passes.canonicalize import canonicalize
from torchqx.fx_passes.observe import ObservingInterpreter
from torchqx.fx_passes.regions import find_region
from torchqx.fx_passes.sites import find_sites, parameter_nodes


def regions(model, *args, **kwargs) -> list:
    """(site, region, replayed, original) of every site with a region."""
    gm, example_inputs = capture_one(model, *args, **kwargs)
    canonicalize(gm)
    sites = find_sites(gm, parameter_nodes(gm, example_inputs))
    found = [(site, region) for site in sites.linears if (region := find_region(site, sites)) is not None]
    keep = {n for site, r in found for n in (*r.inputs, *r.externals, r.output)}
    interpreter = ObservingInterpreter(gm, {}, keep)
    with torch.no_grad():
        interpreter.run(*example_inputs)
        return [(s, r, r.bind(interpreter.kept)([interpreter.kept[n] for n in r.inputs]), interpreter.kept[r.output])
                for s, r in found]


@pytest.mark.parametrize(("name", "expected"), [
    ("llama", {"attention": 2, "gated product": 2}),  # RoPE, two heads of keys, a mask
    ("qwen3", {"attention": 2, "gated product": 2}),  # norms of queries and keys in between
    ("bloom", {"attention": 2}),  # one weight for q, k and v; ALiBi; matmul, softmax, matmul
    ("gpt2", {"attention": 2}),
    ("bert", {"attention": 2}),
    ("vit", {"attention": 2}),
    ("hand_written", {"attention": 2}),
])
def test_replayed(name: str, expected: dict[str, int]) -> None:
    architecture = ARCHITECTURES[name]
    found = regions(architecture.build(), **architecture.inputs(2, 9))
    kinds = [region.on for _, region, _, _ in found]
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    for _, _, replayed, original in found:
        torch.testing.assert_close(replayed, original)


def test_a_region_answers_to_its_inputs() -> None:
    model = Code(lambda x, a, b, c: c(F.silu(a(x)) * b(x)), *(nn.Linear(8, 8) for _ in range(3)))
    gm, example_inputs = capture_one(model, torch.randn(4, 8))
    sites = find_sites(gm, parameter_nodes(gm, example_inputs))
    region = find_region(sites.linears[0], sites)
    gate, up = torch.randn(4, 8), torch.randn(4, 8)
    torch.testing.assert_close(region.bind({})([gate, up]), F.silu(gate) * up)


@pytest.mark.parametrize("cut", [
    lambda y: y.chunk(2, -1), lambda y: (y[..., :8], y[..., 8:]), lambda y: (y.narrow(-1, 0, 8), y.narrow(-1, 8, 8)),
], ids=["chunk", "slices", "narrow"])
def test_gate_and_up_in_one_weight(cut) -> None:
    def code(x, both, down):
        gate, up = cut(both(x))
        return down(F.silu(gate) * up)

    ((_, region, replayed, original),) = regions(Code(code, nn.Linear(8, 16), nn.Linear(8, 8)), torch.randn(4, 8))
    assert region.on == "gated product"
    torch.testing.assert_close(replayed, original)


def test_none_where_a_cache_is_written_in_place() -> None:
    """Replaying it would write into the cache again."""
    cache = torch.zeros(2, 2, 16, 8)

    def code(x, cache, q, k, v):
        q, k, v = (p(x).view(2, -1, 2, 8).transpose(1, 2) for p in (q, k, v))
        keys = cache.index_copy_(2, torch.arange(4), k)
        return F.scaled_dot_product_attention(q, keys, v.new_ones(2, 2, 16, 8) * v.mean())

    model = Code(code, *(nn.Linear(16, 16) for _ in range(3)))
    assert regions(model, torch.randn(2, 4, 16), cache) == []


def test_none_for_lone_outputs() -> None:
    assert regions(Code(lambda x, a: F.relu(a(x)), nn.Linear(8, 8)), torch.randn(4, 8)) == []


def test_none_where_the_addend_is_no_bias() -> None:
    def code(x, a, b, c):
        gate = torch.baddbmm(x, x, a.weight.expand(2, 8, 8))
        return c(F.silu(gate) * b(x))

    assert regions(Code(code, *(nn.Linear(8, 8) for _ in range(3))), torch.randn(2, 8, 8)) == []
