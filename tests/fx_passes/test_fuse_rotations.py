"""A rotation moves into the quantizer that alone reads it, and nowhere else."""

import pytest
import torch
from torch.fx import Graph, GraphModule

from torchqx.fx_passes.fuse_rotations import FUSED, fuse_rotations
from torchqx.fx_passes.lower import HADAMARD
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_group, quantize_per_token, quantize_static
from torchqx.rotations import Hadamard

K, ROTATION = 24, Hadamard(12, 3)
STATIC = quantize_static, (torch.rand(K) * 20, torch.rand(K) * 100, 0, 255)
TOKEN = quantize_per_token, (torch.rand(K), None, 1, 15, True)
CLIPPED = quantize_per_token, (None, torch.rand(K), 0, 255, False, 0.9)
GROUPS = quantize_per_group, (None, None, 0, 255, False, 8)


def graph(quantizer: tuple, transpose: bool = False, read_twice: bool = False) -> GraphModule:
    """A rotation, and a quantizer of its result; the tensors among the quantizer's arguments are attributes."""
    function, args = quantizer
    g = Graph()
    module = torch.nn.Module()

    def held(name: str, value: object) -> object:
        if isinstance(value, torch.Tensor):
            module.register_buffer(name, value)
            return g.get_attr(name)
        return value

    x = g.placeholder("x")
    turned = g.call_function(HADAMARD, (x, held("signs", ROTATION.signs(K)), ROTATION.block, transpose))
    codes = g.call_function(function, (turned, *(held(f"a{i}", a) for i, a in enumerate(args))))
    g.output((codes, turned) if read_twice else codes)
    return GraphModule(module, g)


def same(before: object, after: object) -> None:
    """Up to one code where a value lies between two."""
    before, after = (v if isinstance(v, tuple) else (v,) for v in (before, after))
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=0 if a.is_floating_point() else 1)


@pytest.mark.parametrize("quantizer", [STATIC, TOKEN, CLIPPED], ids=["static", "token", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused(quantizer: tuple, dtype: torch.dtype) -> None:
    gm, x = graph(quantizer), torch.randn(2, 7, K).to(dtype)
    expected = quantizer[0](ROTATION.apply(x.float()), *quantizer[1])
    fuse_rotations(gm)
    targets = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    assert targets == [FUSED[quantizer[0]]]
    same(expected, gm(x))


@pytest.mark.parametrize(("quantizer", "settings"), [
    (GROUPS, {}), (STATIC, {"transpose": True}), (TOKEN, {"read_twice": True}),
], ids=["groups", "inverse", "second reader"])
def test_left_as_it_is(quantizer: tuple, settings: dict) -> None:
    gm = graph(quantizer, **settings)
    before = [n.target for n in gm.graph.nodes]
    fuse_rotations(gm)
    assert [n.target for n in gm.graph.nodes] == before


def test_a_quantizer_that_reads_it_as_a_factor() -> None:
    g = Graph()
    x, add = g.placeholder("x"), g.placeholder("add")
    turned = g.call_function(HADAMARD, (x, None, 12, False))
    g.output(g.call_function(quantize_static, (x, turned, add, 0, 255)))
    gm = fuse_rotations(GraphModule(torch.nn.Module(), g))
    assert any(n.target is HADAMARD for n in gm.graph.nodes)
