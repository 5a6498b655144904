"""What moves into the matmul's epilogue, what must not, and that the result stays."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from tests.fx_passes.rewrite import STATIC, Code, Rewritten, quantized, relative, rewrite
from torchqx.fx_passes.fuse_epilogue import ACTIVATION, OUT_MUL, QMAX, RESIDUAL
from torchqx.fx_passes.lower import PACKED
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no CPU kernel with epilogues here")

K = 24


def fused(code, *inputs, layers: int = 1, recipe=STATIC, dtype=torch.float32) -> tuple[Rewritten, nn.Module]:
    """The fused graph on ``inputs``, after calibration on other ones; the result is checked against the unfused."""
    model = Code(code, *(nn.Linear(K, K) for _ in range(layers))).to(dtype)
    model = quantized(model, recipe, *(i * 1.5 for i in inputs))
    plain, result = rewrite(model, *inputs), rewrite(model, *inputs, fuse=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert relative(result(), plain()) < tolerance
    with torch.no_grad():
        assert relative(result(), model(*inputs)) < (1e-4 if dtype == torch.float32 else 0.05)
    return result, model


@pytest.mark.parametrize(("code", "name"), [
    (lambda x, a: F.relu(a(x)), "relu"),
    (lambda x, a: torch.relu(a(x)), "relu"),
    (lambda x, a: F.gelu(a(x)), "gelu"),
    (lambda x, a: F.gelu(a(x), approximate="tanh"), "gelu_tanh"),
    (lambda x, a: F.silu(a(x)), "silu"),
    (lambda x, a: ACT2FN["gelu_new"](a(x)), "gelu_tanh"),
    (lambda x, a: ACT2FN["quick_gelu"](a(x)), "quick_gelu"),
    (lambda x, a: F.silu(a(x), inplace=True), "silu"),
])
def test_activation(code, name: str) -> None:
    result, _ = fused(code, torch.randn(5, K))
    (node,) = result.calls(PACKED)
    assert node.args[ACTIVATION] == name
    assert not any(result.calls(f) for f in (F.relu, torch.relu, F.gelu, F.silu))


def test_an_activation_with_a_second_reader_stays() -> None:
    def code(x, a):
        y = a(x)
        return F.relu(y) * y

    result, _ = fused(code, torch.randn(5, K))
    assert result.calls(PACKED)[0].args[ACTIVATION] == "none"


@pytest.mark.parametrize("code", [
    lambda x, a: x + a(x), lambda x, a: a(x) + x, lambda x, a: torch.add(x, a(x)), lambda x, a: x + F.relu(a(x)),
], ids=["stream first", "stream second", "torch.add", "after an activation"])
def test_residual(code) -> None:
    result, _ = fused(code, torch.randn(5, K))
    (node,) = result.calls(PACKED)
    assert node.args[RESIDUAL].op == "placeholder"


@pytest.mark.parametrize("code", [
    lambda x, a: a(x) + a(x)[:1],
    lambda x, a: a(x) + x.mean(),
    lambda x, a: a(x) + x.double(),
    lambda x, a: torch.add(a(x), x, alpha=2),
    lambda x, a: a(x) + 1.0,
    lambda x, a: (y := a(x)) + y,
    lambda x, a: a(x) + F.relu(a(x) * x),
], ids=["broadcast", "scalar tensor", "other dtype", "alpha", "number", "itself", "computed later"])
def test_what_is_no_residual(code) -> None:
    result, _ = fused(code, torch.randn(5, K))
    assert result.calls(PACKED)[0].args[RESIDUAL] is None


def test_in_bfloat16() -> None:
    result, _ = fused(lambda x, a: x + a(x), torch.randn(5, K).bfloat16(), dtype=torch.bfloat16)
    assert result.calls(PACKED)[0].args[RESIDUAL] is not None


def test_requantize_for_a_single_reader() -> None:
    result, _ = fused(lambda x, a, b: b(F.gelu(a(x))), torch.randn(5, K), layers=2)
    first, second = result.calls(PACKED)
    assert first.args[OUT_MUL] is not None
    assert first.args[QMAX] == 255
    assert second.args[0] is first
    assert len(result.calls(quantize_static)) == 1  # of the model's input alone


def test_no_requantize_where_the_float_value_is_read_too() -> None:
    def code(x, a, b):
        y = F.gelu(a(x))
        return b(y) * y

    result, _ = fused(code, torch.randn(5, K), layers=2)
    assert all(n.args[OUT_MUL] is None for n in result.calls(PACKED))
    assert len(result.calls(quantize_static)) == 2


def test_a_narrower_range() -> None:
    recipe = replace(STATIC, activation_bits=6)
    result, _ = fused(lambda x, a, b: b(F.relu(a(x))), torch.randn(5, K), layers=2, recipe=recipe)
    assert result.calls(PACKED)[0].args[QMAX] == 63


def test_matmuls_that_ran_together_fuse_nothing() -> None:
    result, _ = fused(lambda x, a, b: F.relu(a(x)) + b(x), torch.randn(5, K), layers=2)
    (node,) = result.calls(PACKED)
    assert node.args[ACTIVATION] == "none"
    assert node.args[RESIDUAL] is None


def test_a_gpt2_mlp_is_two_matmuls() -> None:
    """Its Conv1D flattens rows, and its activation is spelled out."""
    model = GPT2MLP(4 * K, GPT2Config(n_embd=K)).eval()
    x = torch.randn(2, 5, K)
    result = rewrite(quantized(model, STATIC, x * 1.5), x, fuse=True)
    first, second = result.calls(PACKED)
    assert first.args[ACTIVATION] == "gelu_tanh"
    assert second.args[0] is first
    assert len([n for n in result.module.graph.nodes if n.op.startswith("call")]) == 3  # with the first quantizer
    assert relative(result(), model(x).detach()) < 1e-4
