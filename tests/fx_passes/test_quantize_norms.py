"""Which norms are normalized and quantized by the kernel, and that they give what the generated ones do."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.fx_passes.rewrite import STATIC, Code, quantized, relative, rewrite
from torchqx.fx_passes.lower import PACKED
from torchqx.fx_passes.quantize_norms import quantize_norms
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.inductor_kernels.quantize_norm import QUANTIZE_NORM

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no CPU kernel here")

K, N = 24, 100  # no whole number of vectors
KEEP = 8  # position among the operator's arguments


def rewritten(code, *layers, recipe=STATIC, dtype=torch.float32):
    """The rewritten graph, whose result is checked against that of the graph without the pass."""
    torch.manual_seed(0)
    x = torch.randn((3, 17, K), dtype=dtype)
    model = quantized(Code(code, *layers).to(dtype), recipe, x * 1.5)
    before, result = rewrite(model, x, fuse=True), rewrite(model, x, fuse=True)
    quantize_norms(result.module)
    # A code is another where a value lies between two: sums are added up in another order.
    assert relative(result(), before()) < (1e-3 if dtype == torch.float32 else 0.02)
    return result


def layers(norm: nn.Module) -> tuple[nn.Module, ...]:
    return nn.Linear(K, N), norm, nn.Linear(N, K)


def plain(x: Tensor, a: nn.Module, norm: nn.Module, b: nn.Module) -> Tensor:
    return b(norm(a(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.LayerNorm(N), nn.LayerNorm(N, bias=False),
                                  nn.LayerNorm(N, elementwise_affine=False)], ids=["affine", "weight", "bare"])
def test_what_a_matmul_wrote(norm, dtype) -> None:
    result = rewritten(plain, *layers(norm), dtype=dtype)
    (call,) = result.calls(QUANTIZE_NORM)
    assert (call.args[0].target, call.args[KEEP]) == (PACKED, False)
    assert [n.args[0].op for n in result.calls(quantize_static)] == ["placeholder"]


def test_what_else_reads_the_norm_gets_it() -> None:
    def code(x: Tensor, a: nn.Module, norm: nn.Module, b: nn.Module) -> Tensor:
        y = norm(a(x))
        return torch.cat((b(y), y.exp(), y[..., 1:] * 2), -1)

    (call,) = rewritten(code, *layers(nn.LayerNorm(N))).calls(QUANTIZE_NORM)
    assert call.args[KEEP]


def test_two_quantizers() -> None:
    """The second reads the norm that is kept."""
    recipe = replace(STATIC, shift=False)

    def code(x: Tensor, a: nn.Module, norm: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        y = norm(a(x))
        return b(y) + c(y.clone())

    result = rewritten(code, *layers(nn.LayerNorm(N)), nn.Linear(N, K), recipe=recipe)
    assert len(result.calls(QUANTIZE_NORM)) == 1
    assert result.calls(QUANTIZE_NORM)[0].args[KEEP] == (len(result.calls(quantize_static)) == 2)


def written_between(x: Tensor, a: nn.Module, norm: nn.Module, b: nn.Module) -> Tensor:
    y = norm(a(x))
    y[..., 3] = 1.0
    return b(y)


LEFT = {
    "generated input": (lambda x, a, norm, b: b(norm(a(x) + 1)), nn.LayerNorm(N)),
    "two dimensions": (lambda x, a, norm, b: b(norm(a(x))), nn.LayerNorm((17, N))),
    "an RMS norm": (plain, nn.RMSNorm(N)),
    "written between": (written_between, nn.LayerNorm(N)),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_as_it_is(case: str) -> None:
    code, norm = LEFT[case]
    assert not rewritten(code, *layers(norm)).calls(QUANTIZE_NORM)


def test_per_token_is_left() -> None:
    recipe = replace(STATIC, activation="token", shift=False)
    assert not rewritten(plain, *layers(nn.LayerNorm(N)), recipe=recipe).calls(QUANTIZE_NORM)
