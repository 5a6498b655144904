"""Which norms get their divisors stored, and that they stay norms."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from tests.capture import capture_one
from torchqx.fx_passes.sites.ops import op_name
from torchqx.fx_passes.store_rows import store_rows
from torchqx.inductor_kernels import norms
from torchqx.inductor_kernels.stored import STORED

K = 100
WEIGHT, BIAS = torch.randn(K), torch.randn(K)


def spelled_out(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (K,), weight, bias)


def with_names(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, normalized_shape=(K,), bias=bias, weight=weight, eps=1e-3)


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.rms_norm(x, (K,), weight)


def default_epsilon(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.rms_norm(x * 0.01, (K,))


def in_place(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    size = x.pow(2).mean(-1, keepdim=True)
    size.rsqrt_().mul_(3)
    return x * size


def into_another(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    size = torch.empty(3, 5, 1, dtype=x.dtype)
    torch.rsqrt(x.pow(2).mean(-1, keepdim=True), out=size).mul_(3)
    return x * size


def of_a_matrix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (5, K))


def of_every_element(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.rsqrt(x * x + 1)


def passed(code: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[object]:
    """The targets of the graph after the pass, which is checked to compute what it did before."""
    gm, args = capture_one(code, torch.randn(3, 5, K).to(dtype), WEIGHT.to(dtype), BIAS.to(dtype))
    before = gm(*args)[0]
    after = store_rows(gm)(*args)[0]
    torch.testing.assert_close(after, before)
    return [node.target for node in gm.graph.nodes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("code", "target"), [
    (spelled_out, STORED), (layer_norm, norms.layer_norm), (with_names, norms.layer_norm), (rms_norm, norms.rms_norm),
    (default_epsilon, norms.rms_norm)])
def test_rewritten(code: Callable[..., Tensor], target: object, dtype: torch.dtype) -> None:
    assert passed(code, dtype).count(target) == 1


@pytest.mark.parametrize("code", [of_a_matrix, of_every_element, in_place, into_another])
def test_left_alone(code: Callable[..., Tensor]) -> None:
    assert not {STORED, norms.layer_norm, norms.rms_norm} & set(passed(code))


def test_autocast_decides_the_result_s_dtype() -> None:
    def cast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.layer_norm(x @ torch.ones(K, K), (K,), weight, bias)

    gm, args = capture_one(cast, torch.randn(3, K), WEIGHT, BIAS)
    before = gm(*args)[0]
    after = store_rows(gm)(*args)[0]
    assert after.dtype == before.dtype
    assert [op_name(n) for n in gm.graph.nodes].count("layer_norm") == 1


@pytest.mark.parametrize("code", [spelled_out, layer_norm])
def test_compiled_the_last_loop_does_not_divide(code: Callable[..., Tensor]) -> None:
    gm, args = capture_one(code, torch.randn(64, K), WEIGHT, BIAS)
    store_rows(gm)
    _, (text,) = run_and_get_code(torch.compile(gm), *args)
    last_loop = text[text.rindex("for(int64_t x1") :].partition("'''")[0]
    assert "store" in last_loop
    assert not any(word in last_loop for word in ("sqrt", " / ", "reciprocal"))
