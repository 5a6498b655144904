"""Which per-token quantizers run as a kernel of their own, and that they give what the generated ones do."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.fx_passes.rewrite import STATIC, Code, quantized, relative, rewrite
from torchqx.fx_passes.attention_kernel import ATTENTION, pays, use_attention_kernel
from torchqx.fx_passes.lower import PACKED
from torchqx.fx_passes.quantize_rows import QUANTIZE_ROWS, quantize_rows
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no CPU kernel here")

TOKEN = replace(STATIC, activation="token", shift=False)
K, N = 24, 100  # no whole number of vectors


def rewritten(code, *layers, recipe=TOKEN, dtype=torch.float32, shape=(3, 17, K)):
    """The rewritten graph, whose result is checked against that of the graph without the pass."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    model = quantized(Code(code, *layers).to(dtype), recipe, x * 1.5)
    before, result = rewrite(model, x, fuse=True), rewrite(model, x, fuse=True)
    use_attention_kernel(before.module)
    use_attention_kernel(result.module)
    quantize_rows(result.module)
    assert relative(result(), before()) < (1e-5 if dtype == torch.float32 else 0.02)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", [TOKEN, replace(TOKEN, shift=True), replace(TOKEN, activation_symmetric=True)],
                         ids=["range", "shift", "symmetric"])
def test_what_a_matmul_wrote(recipe, dtype) -> None:
    result = rewritten(lambda x, a, b: b(F.gelu(a(x))), nn.Linear(K, N), nn.Linear(N, K), recipe=recipe, dtype=dtype)
    own, generated = result.calls(QUANTIZE_ROWS), result.calls(quantize_per_token)
    assert [n.args[0].target for n in own] == [PACKED]
    assert [n.args[0].op for n in generated] == ["placeholder"]  # whatever computes x may take it in


def test_through_views() -> None:
    result = rewritten(lambda x, a, b: b(a(x).unflatten(-1, (2, N // 2)).flatten(0, 1)), nn.Linear(K, N),
                       nn.Linear(N // 2, K))
    assert len(result.calls(QUANTIZE_ROWS)) == 1


@pytest.mark.skipif(not pays(torch.float32, 40), reason="no attention kernel here")
def test_what_attention_wrote() -> None:
    def code(x, qkv, out):
        q, k, v = qkv(x).view(2, 40, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
        return out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 40, 64))

    result = rewritten(code, nn.Linear(K, 192), nn.Linear(64, K), shape=(2, 40, K))
    assert len(result.calls(ATTENTION)) == len(result.calls(QUANTIZE_ROWS)) == 1


@pytest.mark.parametrize("between", [lambda y: F.layer_norm(y, (N,)), lambda y: y + 1], ids=["norm", "sum"])
def test_left_as_it_is(between) -> None:
    result = rewritten(lambda x, a, b: b(between(a(x))), nn.Linear(K, N), nn.Linear(N, K))
    assert not result.calls(QUANTIZE_ROWS)
    assert len(result.calls(quantize_per_token)) == 2
