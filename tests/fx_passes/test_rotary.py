"""Which position embeddings are applied in one pass, and that every bit of the result stays."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

import torchqx
from tests.architectures import ARCHITECTURES
from tests.capture import capture_one
from torchqx.fx_passes.attention_kernel import use_attention_kernel
from torchqx.fx_passes.rotary import turn_in_one_pass
from torchqx.fx_passes.sites.ops import op_name
from torchqx.inductor_kernels.attention import is_supported

B, H, S, D = 2, 3, 5, 16
COS, SIN = torch.randn(1, 1, S, D), torch.randn(1, 1, S, D)


def halves(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def attended(q: Tensor, k: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, k)


def usual(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return attended(q * cos + halves(q) * sin, k * cos + halves(k) * sin)


def swapped(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return attended(sin * halves(q) + cos * q, torch.add(torch.mul(k, cos), torch.mul(halves(k), sin)))


def negative_bounds(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def half_turned(x: Tensor) -> Tensor:
        return torch.cat((-x[..., -D // 2 :], x[:, :, :, : -D // 2]), -1)
    return attended(q * cos + half_turned(q) * sin, k * cos + half_turned(k) * sin)


def part_of_the_width(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def turned(x: Tensor) -> Tensor:
        head, rest = x[..., : D // 2], x[..., D // 2 :]
        return torch.cat((head * cos[..., : D // 2] + halves(head) * sin[..., : D // 2], rest), -1)
    return attended(turned(q), turned(k))


def another_way_round(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def other(x: Tensor) -> Tensor:
        return torch.cat((x[..., D // 2 :], -x[..., : D // 2]), -1)
    return attended(q * cos + other(q) * sin, k * cos + other(k) * sin)


def of_another(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return attended(q * cos + halves(k) * sin, k * cos + halves(q) * sin)


def unequal_parts(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def third(x: Tensor) -> Tensor:
        return torch.cat((-x[..., 5:], x[..., :5]), -1)
    return attended(q * cos + third(q) * sin, k * cos + third(k) * sin)


def written_between(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def turned(x: Tensor) -> Tensor:
        x = x.clone()
        turn = halves(x) * sin
        x.mul_(2)
        return x * cos + turn
    return attended(turned(q), turned(k))


def sum_in_place(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = q * cos
    turned.add_(halves(q) * sin)
    return attended(turned, k)


def sum_seen_through_a_view(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = q * cos
    view = turned.transpose(-1, -2)
    turned += halves(q) * sin
    return attended(view.transpose(-1, -2), k)


def product_in_place(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turn = halves(q)
    return attended(q * cos + turn.mul_(sin), k) + turn.sum()


def negated_changed(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    negated = -q[..., D // 2 :]
    negated.mul_(2)
    return attended(q * cos + torch.cat((negated, q[..., : D // 2]), -1) * sin, k)


def not_a_slice(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    order = torch.arange(D // 2).flip(0)
    return attended(q * cos + torch.cat((-q[..., D // 2 :], q[..., order]), -1) * sin, k)


def layout_matters(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return attended((q * cos + halves(q) * sin).transpose(1, 2).view(B, S, H, D).transpose(1, 2), k)


def passed(code: Callable[..., Tensor], dtype: torch.dtype = torch.float32, symbol: bool = False) -> GraphModule:
    """The graph of ``code`` after the pass, checked to compute what it did before."""
    inputs = [torch.randn(B, S, H, D).to(dtype).transpose(1, 2) for _ in range(2)]
    inputs += [COS.to(dtype, copy=True), SIN.to(dtype, copy=True)]
    for value in inputs if symbol else ():
        torch._dynamo.mark_dynamic(value, 2)
    gm, args = capture_one(code, *inputs, dynamic=None)
    before = gm(*args)[0]
    assert torch.equal(turn_in_one_pass(gm)(*args)[0], before)
    return gm


def count(gm: GraphModule, name: str) -> int:
    return sum(op_name(node) == name for node in gm.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("code", [usual, swapped, negative_bounds, part_of_the_width])
def test_rewritten(code: Callable[..., Tensor], dtype: torch.dtype) -> None:
    gm = passed(code, dtype)
    assert count(gm, "sub") == 2
    assert count(gm, "neg") == 0


def test_the_length_may_be_a_symbol() -> None:
    gm = passed(usual, symbol=True)
    assert any(node.op == "placeholder" and node.type is torch.SymInt for node in gm.graph.nodes)
    assert count(gm, "sub") == 2


@pytest.mark.parametrize("code", [
    another_way_round, of_another, unequal_parts, written_between, sum_in_place, sum_seen_through_a_view,
    product_in_place, negated_changed, not_a_slice])
def test_left_alone(code: Callable[..., Tensor]) -> None:
    assert count(passed(code), "sub") == 0


def test_a_reader_of_the_layout_keeps_it() -> None:
    assert count(passed(layout_matters), "sub") == 0


@pytest.mark.skipif(not is_supported(torch.device("cpu"), torch.float32), reason="no attention kernel for this CPU")
def test_our_attention_reads_any_layout() -> None:
    gm, args = capture_one(usual, *[torch.randn(B, S, H, D).transpose(1, 2) for _ in range(2)], COS, SIN)
    before = use_attention_kernel(gm)(*args)[0]
    assert torch.equal(turn_in_one_pass(gm)(*args)[0], before)
    assert (count(gm, "attention"), count(gm, "sub")) == (1, 2)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral"])
def test_real_decoders(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build().eval()
    gm, args = capture_one(model, **architecture.inputs(2, 24), use_cache=False)
    expected = gm(*args)
    turn_in_one_pass(gm)
    assert count(gm, "sub") >= 2 * model.config.num_hidden_layers
    for got, wanted in zip(gm(*args), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_prefill_and_steps_of_a_compiled_model() -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.build().eval()
    inputs = architecture.inputs(2, 24)
    torchqx.quantize(model, torchqx.MinMaxConfig(activation="static"), [inputs])
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    model.compile(backend="torchqx", options={"lowering": "eager"})
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
