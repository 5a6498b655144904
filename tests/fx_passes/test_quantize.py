"""Every form of a weighted matmul, rewritten: what the graph computes, and what it is made of."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchqx
from tests.architectures import ARCHITECTURES
from tests.fx_passes.rewrite import STATIC, Code, quantized, relative, rewrite
from tests.fx_passes.sites.small import Small
from tests.fx_passes.sites.test_linears import SPELLINGS
from torchqx.fx_passes import derived as d
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.lower import EXPERTS, HADAMARD, PACKED, WEIGHT_ONLY_EXPERTS
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_aten, int8_linear_general_aten
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_group, quantize_per_token, quantize_static
from torchqx.inductor_kernels.int8_linear.weight_only import weight_only_linear
from torchqx.rotations import Hadamard
from torchqx.site_state import SiteState

MATMULS = (PACKED, EXPERTS, int8_linear_aten, int8_linear_general_aten, weight_only_linear, WEIGHT_ONLY_EXPERTS)
TOKEN = torchqx.MinMaxConfig(activation="token", quantize_head=True)
WEIGHT_ONLY = torchqx.SmoothQuantScalingConfig(activation="none", quantize_head=True)


def matmuls(result) -> list:
    return [n for target in MATMULS for n in result.calls(target)]


@pytest.mark.parametrize("recipe", [STATIC, TOKEN, WEIGHT_ONLY], ids=["static", "token", "weight only"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling(spelling: str, recipe) -> None:
    code, shape, weight, *_ = SPELLINGS[spelling]
    torch.manual_seed(1)
    model, x = Small(code, [weight]), torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
    model = quantized(model, recipe, x)
    result = rewrite(model, x)
    assert len(matmuls(result)) == 1
    assert result().dtype == expected.dtype
    assert relative(result(), expected) < 0.02
    assert not any(n.op == "placeholder" and "dequantized" in n.name for n in result.module.graph.nodes)


@pytest.mark.parametrize("spelling", ["linear", "operator", "addmm", "left", "conv1d", "patches"])
def test_as_in_eager_mode(spelling: str) -> None:
    """On data without ties (the calibration set's extremes lie half way between codes)."""
    code, shape, weight, *_ = SPELLINGS[spelling]
    model = quantized(Small(code, [weight]), STATIC, torch.randn(shape) * 2)
    x = torch.randn(shape)
    with torch.no_grad():
        assert relative(rewrite(model, x)(), model(x)) < 1e-5


@pytest.mark.parametrize("settings", [
    {"weight_symmetric": False}, {"weight_granularity": "group", "weight_group_size": 8},
    {"weight_granularity": "tensor"}, {"activation": "group", "activation_group_size": 16}, {"activation": "none"},
], ids=lambda s: next(iter(s)))
def test_experts_in_every_granularity(settings: dict) -> None:
    a = ARCHITECTURES["mixtral"]
    recipe = torchqx.MinMaxConfig(**{"activation": "token"} | settings)
    inputs = a.inputs(2, 12)
    model = a.build()
    model.model.layers = model.model.layers[:1]
    with torch.no_grad():
        expected = model(**inputs).logits
    model = torchqx.quantize(model, recipe, [inputs])
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(model, backend="torchqx", options={"lowering": "eager"})(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert relative(result[real], expected[real]) < 0.05
    assert sum("experts" in s.key and s.status == "quantized" for s in torchqx.explain(model).sites) == 2


def attention(x, q, k, v):
    return F.scaled_dot_product_attention(q(x), k(x), v(x))


def test_matmuls_of_one_activation_run_as_one() -> None:
    model = Code(attention, nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32))
    x = torch.randn(2, 9, 32)
    model = quantized(model, STATIC, x * 2)
    result = rewrite(model, x)
    assert len(result.calls(quantize_static)) == 1
    (wide,) = matmuls(result)
    (values,) = [v for i, v in zip(result.module.graph.nodes, result.inputs, strict=False) if i.name.startswith("bias")]
    assert values.shape == (96,)
    assert len(wide.users) == 3
    with torch.no_grad():
        assert relative(result(), model(x)) < 1e-5


def test_dynamic_ones_too() -> None:
    x = torch.randn(2, 9, 32)
    model = quantized(Code(attention, *(nn.Linear(32, 32) for _ in range(3))), TOKEN, x)
    result = rewrite(model, x)
    assert (len(result.calls(quantize_per_token)), len(matmuls(result))) == (1, 1)


def test_other_result_dtypes_keep_matmuls_apart() -> None:
    """One linear inside autocast, its neighbour outside of it."""
    def code(x, first, second):
        with torch.autocast("cpu", torch.bfloat16):
            y = first(x)
        return y.float() + second(x)

    x = torch.randn(3, 32)
    model = quantized(Code(code, nn.Linear(32, 32), nn.Linear(32, 32)), STATIC, x)
    result = rewrite(model, x)
    assert len(matmuls(result)) == 2
    with torch.no_grad():
        assert relative(result(), model(x)) < 0.02


@pytest.mark.parametrize("settings", [
    {"weight_granularity": "group", "weight_group_size": 8}, {"weight_symmetric": False},
], ids=["grouped", "asymmetric"])
def test_general_kernels_stand_alone(settings: dict) -> None:
    x = torch.randn(2, 9, 32)
    recipe = torchqx.MinMaxConfig(activation="group", activation_group_size=16, quantize_head=True, **settings)
    model = quantized(Code(attention, *(nn.Linear(32, 32) for _ in range(3))), recipe, x)
    result = rewrite(model, x)
    assert len(result.calls(int8_linear_general_aten)) == 3
    assert {len(n.users) for n in result.calls(quantize_per_group)} <= {2, 3}
    with torch.no_grad():
        assert relative(result(), model(x)) < 1e-5


def test_other_readers_of_a_stored_weight_see_it_in_float() -> None:
    """Calibration saw the linear alone; the model that is compiled reads its weight once more."""
    x = torch.randn(5, 32)
    model = quantized(Code(lambda x, layer: layer(x), nn.Linear(32, 32)), STATIC, x * 2)
    model.code = lambda x, layer: layer(x) + layer.weight.sum(0)
    result = rewrite(model, x)
    assert len(matmuls(result)) == 1
    with torch.no_grad():
        expected = model(x)
    assert relative(result(), expected) < 1e-4


def test_a_bias_that_the_graph_computes() -> None:
    x = torch.randn(5, 32)
    code = Code(lambda x, layer: F.linear(x, layer.weight, layer.bias * x.mean()), nn.Linear(32, 16))
    model = quantized(code, STATIC, x * 2)
    result = rewrite(model, x)
    assert len(matmuls(result)) == 1
    with torch.no_grad():
        assert relative(result(), model(x)) < 1e-5


def test_one_weight_for_two_activations() -> None:
    x = torch.randn(5, 32)
    model = quantized(Code(lambda x, layer: layer(layer(x).relu()), nn.Linear(32, 32)), STATIC, x)
    result = rewrite(model, x)
    assert len(matmuls(result)) == 2
    with torch.no_grad():
        assert relative(result(), model(x)) < 0.05


@pytest.mark.parametrize("recipe", [STATIC, TOKEN], ids=["static", "token"])
def test_a_matmul_right_behind_a_matmul(recipe) -> None:
    x = torch.randn(5, 32)
    model = quantized(Code(lambda x, a, b: b(a(x)), nn.Linear(32, 32), nn.Linear(32, 32)), recipe, x * 2)
    result = rewrite(model, x)
    assert len(matmuls(result)) == 2
    with torch.no_grad():
        assert relative(result(), model(x)) < 1e-3


def test_the_original_graph_stays() -> None:
    x = torch.randn(5, 32)
    model = quantized(Code(lambda x, layer: layer(x), nn.Linear(32, 32)), STATIC, x)
    result = rewrite(model, x)
    assert result.sites.linears[0].ops[0].node.graph is not result.module.graph
    assert [n.target for n in result.sites.linears[0].x.graph.nodes if n.op == "call_function"] == [torch._C._nn.linear]


def test_derived_inputs_name_what_they_come_from() -> None:
    model = Code(attention, *(nn.Linear(32, 32) for _ in range(3)))
    sites = rewrite(quantized(model, STATIC, torch.randn(2, 9, 32)), torch.randn(2, 9, 32)).sites
    weights = tuple(op.weight for op in sites.linears[0].ops)
    item = Derived(d.bias, weights, (None, sites.linears[0].x, None))
    assert item.sources == [*weights, sites.linears[0].x]


def turned(model: nn.Module, recipe, x: Tensor, norm: Tensor | None = None, outputs: dict | None = None) -> nn.Module:
    """``model`` quantized with a norm's weight taken out and results rotated, where something asks for it."""
    adopt = SiteState.adopt

    def settle(state: SiteState, weight: Tensor, index: int) -> None:
        adopt(state, weight, index)
        state.rotate(state.rotation, norm, x.shape[-1])
        state.output_rotations = outputs or {}

    with patch.object(SiteState, "adopt", settle):
        return quantized(model, recipe, x)


ROTATIONS = {"token": torchqx.HadamardConfig(quantize_head=True, fold="none"), "static": torchqx.HadamardConfig(
    quantize_head=True, activation="static", seed=None, shift_scale="osplus", loss="linear", fold="none")}


@pytest.mark.parametrize("arm", ROTATIONS)
def test_rotated_consumers_share_one_rotation(arm: str) -> None:
    x = torch.randn(2, 9, 32)
    layers = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32)
    model = turned(Code(attention, *layers), ROTATIONS[arm], x * 2, outputs={2: Hadamard(16, 1), 0: Hadamard(32)})
    result, fused = rewrite(model, x), rewrite(model, x, fuse=True)
    assert [n.args[2:] for n in result.calls(HADAMARD)] == [(32, False), (32, True), (16, True)]
    assert len(matmuls(result)) == 1, "rotating some results keeps no matmuls apart"
    assert [n.args[2:] for n in fused.calls(HADAMARD)] == [(32, True), (16, True)]
    with torch.no_grad():
        expected = model(x)
    assert relative(result(), expected) < 1e-3
    assert relative(fused(), expected) < 1e-3


def test_equal_rotations_read_one_tensor_of_signs() -> None:
    """Which is how a later pass knows that they are equal."""
    x = torch.randn(5, 32)
    layers = [nn.Linear(32, 32) for _ in range(3)]
    code = Code(lambda x, a, b, c: c(b(a(x)).relu()), *layers)
    model = turned(code, ROTATIONS["token"], x, outputs={0: Hadamard(32, 0)})
    nodes = rewrite(model, x).calls(HADAMARD)
    assert len(nodes) == 6
    assert len({n.args[1] for n in nodes}) == 1


@pytest.mark.parametrize("spelling", ["linear", "addmm", "left", "patches", "experts"])
def test_rotated_in_every_form(spelling: str) -> None:
    code, shape, weight, *_ = SPELLINGS[spelling]
    torch.manual_seed(1)
    model, x = Small(code, [weight]), torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
    with patch("torchqx.hadamard.SMALLEST_BLOCK", 1):
        model = quantized(model, ROTATIONS["token"], x)
    result = rewrite(model, x)
    assert len(result.calls(HADAMARD)) == 1
    assert relative(result(), expected) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norms_weight_taken_out(dtype: torch.dtype) -> None:
    x, g = torch.randn(5, 32), torch.rand(32) * 9 - 10
    model = Code(lambda x, layer, other: layer(x).relu() + other(x), nn.Linear(32, 32), nn.Linear(32, 32)).to(dtype)
    with torch.no_grad():
        expected = model((x * g).to(dtype))
    model = turned(model, ROTATIONS["token"], (x * g).to(dtype), norm=g, outputs={1: Hadamard(16)})
    result = rewrite(model, (x * g).to(dtype))
    (division,) = result.calls(torch.div)
    assert [n.target for n in division.users] == [HADAMARD]
    assert result().dtype == dtype
    assert relative(result(), expected) < 0.03


def test_a_computed_bias_is_added_to_the_turned_result() -> None:
    x = torch.randn(5, 32)
    code = Code(lambda x, layer: F.linear(x, layer.weight, layer.bias * x.mean()), nn.Linear(32, 16))
    model = turned(code, ROTATIONS["token"], x * 2, outputs={0: Hadamard(16, 2)})
    with torch.no_grad():
        assert relative(rewrite(model, x)(), model(x)) < 1e-3
