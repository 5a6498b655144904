"""Writes in place are seen through views, and make nothing wrong."""

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.capture import capture_one
from tests.fx_passes.rewrite import STATIC, Code, quantized, relative, rewrite
from torchqx.fx_passes.in_place import written, written_between

WRITES = {
    "method": lambda h: h.add_(1),
    "item": lambda h: h.__setitem__((slice(None), 0), 3.0),
    "through a view": lambda h: h.view(-1)[:5].zero_(),
    "operator": lambda h: h.__iadd__(1),
    "power": lambda h: h.__ipow__(2),
    "result": lambda h: torch.add(h, 1, out=h),
    "operator of ours": lambda h: torchqx.causal_conv1d_update(torch.ones(1, 4, 1), h.view(1, 4, 5), torch.ones(4, 2)),
}


@pytest.mark.parametrize("name", WRITES)
def test_found_between(name: str) -> None:
    def code(x):
        h = x * 2
        WRITES[name](h)
        return h + 1

    gm, _ = capture_one(code, torch.randn(4, 5))
    made = next(n for n in gm.graph.nodes if n.op == "call_function")
    last = next(n for n in reversed(gm.graph.nodes) if n.op in ("call_function", "call_method"))
    assert any(written(n) is not None for n in gm.graph.nodes)
    assert written_between(made, made, last)


@pytest.mark.parametrize("code", [operator.and_, operator.or_, operator.xor, lambda x, y: ~(x & y)])
def test_bitwise_operators_write_nothing(code: Callable[..., Tensor]) -> None:
    """Their functions end in an underscore too."""
    gm, _ = capture_one(lambda x, y: code(x > 0, y > 0), torch.randn(4, 5), torch.randn(4, 5))
    assert not [n for n in gm.graph.nodes if written(n) is not None]


def test_other_memory_does_not_count() -> None:
    gm, _ = capture_one(lambda x, y: (y.add_(1), x * 2 + 1)[1], torch.randn(4, 5), torch.randn(4, 5))
    y = next(target for n in gm.graph.nodes if (target := written(n)) is not None)
    x = next(n for n in gm.graph.nodes if n.op == "placeholder" and n is not y)
    end = next(n for n in gm.graph.nodes if n.op == "output")
    assert written_between(y, y, end)
    assert not written_between(x, x, end)


@pytest.mark.parametrize("name", ["method", "item", "through a view"])
def test_a_site_whose_activation_changes_stays_float(name: str) -> None:
    def code(x, first, second, third):
        h = first(x)
        y = second(h)
        WRITES[name](h)
        return y + third(h)

    model = Code(code, *(nn.Linear(16, 16) for _ in range(3)))
    x = torch.randn(32, 16)
    with torch.no_grad():
        expected = model(x)
    model = quantized(model, STATIC, x)
    report = torchqx.explain(model)
    assert [s.status for s in report.sites if s.kind == "linear"].count("quantized") == 1
    assert any("written to in place" in s.reason for s in report.sites)
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(model, backend="torchqx", options={"lowering": "eager"})(x)
    assert relative(result, expected) < 0.03


def test_a_sum_into_the_stream_is_not_moved_into_the_matmul() -> None:
    def code(x, first, second):
        stream = first(x)
        before = stream.view(-1, 2, 8)
        stream += second(x)
        return before * 1.0

    model = quantized(Code(code, nn.Linear(16, 16), nn.Linear(16, 16)), STATIC, torch.randn(32, 16))
    x = torch.randn(32, 16)
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
    assert relative(rewrite(model, x, fuse=True)(), expected) < 1e-5
