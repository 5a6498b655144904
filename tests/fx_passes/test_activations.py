"""Spelled-out activation functions get their names; what only looks like one keeps its ops."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.bloom.modeling_bloom import BloomGelu

from tests.capture import capture_one
from torchqx.fx_passes.activations import name_activations
from torchqx.fx_passes.sites.ops import op_name
from torchqx.inductor_kernels.int8_linear.activations import quick_gelu


def named(code, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> list[tuple]:
    """The ops left, each with its keyword arguments; results stay what they were to rounding."""
    inputs = inputs or (torch.linspace(-6, 6, 91, dtype=dtype),)
    gm, example_inputs = capture_one(code, *inputs)
    expected = code(*(i.double() for i in inputs))
    name_activations(gm)
    (result,) = gm(*example_inputs)
    assert result.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected.double(), rtol=tolerance, atol=tolerance)
    calls = [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")]
    return [(op_name(n), dict(n.kwargs)) for n in calls if n.target is not torch._C._log_api_usage_once]


TANH, EXACT, QUICK = ("gelu", {"approximate": "tanh"}), ("gelu", {}), ("quick_gelu", {})


@pytest.mark.parametrize(("code", "expected"), [
    *((ACT2FN[name], TANH) for name in ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")),
    (BloomGelu(), TANH),
    (ACT2FN["gelu_python"], EXACT),
    (lambda x: x.div(math.sqrt(2)).erf().add(1).mul(x).mul(0.5), EXACT),
    (ACT2FN["quick_gelu"], QUICK),
    (lambda x: torch.sigmoid(x) * x, ("silu", {})),
], ids=["new", "fast", "accurate", "python tanh", "BLOOM", "python", "methods", "quick", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_named(code, expected: tuple, dtype: torch.dtype) -> None:
    assert named(code, dtype=dtype) == [expected]


def other_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.79 * (x + 0.044715 * x ** 3)))


def changing(x: Tensor) -> Tensor:
    y = x + 0
    gate = torch.sigmoid(y)
    y.mul_(2)
    return y * gate


@pytest.mark.parametrize("code", [
    other_gelu,
    changing,
    lambda x: torch.tanh(x) + torch.sigmoid(x),
    lambda x: x * torch.sigmoid(x.abs()),
    lambda x: x.sigmoid().mul_(x),
    ACT2FN["laplace"],
], ids=["other constant", "changed in between", "two seeds", "not pointwise", "in place", "laplace"])
def test_others_stay(code) -> None:
    assert not {"gelu", "silu", "quick_gelu"} & {name for name, _ in named(code)}


def test_complex_numbers_stay() -> None:
    gm, inputs = capture_one(ACT2FN["gelu_new"], torch.randn(5, dtype=torch.complex64))
    name_activations(gm)
    torch.testing.assert_close(gm(*inputs)[0], ACT2FN["gelu_new"](inputs[0]))


def test_an_operator_of_somebody_else_is_not_run() -> None:
    def square(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return x.clone()

    library = torch.library.Library("activations_test", "DEF")
    library.define("square(Tensor x) -> Tensor")
    library.impl("square", square, "CompositeExplicitAutograd")
    gm, _ = capture_one(lambda x: x * torch.sigmoid(torch.ops.activations_test.square(x)), torch.randn(5))
    names = [op_name(n) for n in name_activations(gm).graph.nodes if n.op == "call_function"]
    assert names == ["square", "sigmoid", "mul"]


def test_a_second_tensor_stays_out() -> None:
    assert named(lambda x, y: y * torch.sigmoid(x), torch.randn(5), torch.randn(5)) == [("sigmoid", {}), ("mul", {})]


def test_a_part_that_others_read_stays() -> None:
    def code(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return (x * gate).sin() + gate

    assert [name for name, _ in named(code)] == ["sigmoid", "mul", "sin", "add"]


def test_the_source_may_be_pointwise_too() -> None:
    ops = named(lambda x: ACT2FN["gelu_new"](x * 2 + 1) * 3)
    assert ops == [("mul", {}), ("add", {}), TANH, ("mul", {})]


def test_every_layer_and_its_own_source() -> None:
    model = nn.Sequential(nn.Linear(5, 5), ACT2FN["gelu_new"], nn.Linear(5, 5), ACT2FN["quick_gelu"]).eval()
    gm, _ = capture_one(model, torch.randn(2, 5))
    name_activations(gm)
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    assert [n.target for n in calls] == [torch._C._nn.linear, F.gelu, torch._C._nn.linear, quick_gelu]
    assert all(b.args[0] is a for a, b in pairwise(calls))
    assert calls[1].meta["example_value"].shape == (2, 5)
