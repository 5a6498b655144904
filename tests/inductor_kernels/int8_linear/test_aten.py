"""The ATen formulas against float64, for every granularity, eager and compiled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.errors import ConfigError
from torchqx.inductor_kernels.int8_linear import (
    ACTIVATIONS,
    int8_experts_aten,
    int8_linear_aten,
    int8_linear_general_aten,
)
from torchqx.inductor_kernels.int8_linear.aten import MOST_INTEGER_GROUPS, int_matmul
from torchqx.inductor_kernels.int8_linear.naive import int8_experts_naive, int8_linear_naive

FLOAT = (None, None, 0, 255, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("per_token", [False, True])
def test_plain_weight(operands, activation, per_token):
    o = operands((3, 7), 63, 100, per_token)
    residual = torch.randn(3, 7, 100, dtype=torch.bfloat16)
    args = (o.x_scale, o.x_zero_point, o.bias, activation, residual)
    y = int8_linear_aten(o.x, o.qdata, o.weight_scale, o.column_sum, *args, *FLOAT)
    expected = int8_linear_naive(o.x, o.qdata, o.weight_scale, None, *args)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)


def test_requantized_and_bfloat16(operands):
    o = operands((9,), 100, 63)
    args = (o.x_scale, o.x_zero_point, None, "gelu", None)
    out = (torch.rand(63) * 40, torch.tensor([50.0]), 0, 63)
    codes = int8_linear_aten(o.x, o.qdata, o.weight_scale, o.column_sum, *args, *out, torch.float32)
    expected = int8_linear_naive(o.x, o.qdata, o.weight_scale, None, *args, *out)
    assert codes.dtype == torch.uint8
    assert (codes.double() - expected).abs().max() <= 0.5 + 1e-3
    y = int8_linear_aten(o.x, o.qdata, o.weight_scale, o.column_sum, *args, *FLOAT[:-1], torch.bfloat16)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("gate", [None, 0])
def test_no_rows(operands, gate):
    o = operands((0, 3), 63, 100)
    y = int8_linear_aten(o.x, o.qdata, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias, "none", None,
                         *FLOAT, gate)
    assert y.shape == (0, 3, 100 if gate is None else 50)


def test_unknown_activation_names_the_known_ones(operands):
    o = operands((9,), 100, 63)
    with pytest.raises(ConfigError, match="gelu_tanh"):
        int8_linear_aten(o.x, o.qdata, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, None, "tanh", None,
                         *FLOAT)


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 9), n=st.integers(1, 40), size=st.sampled_from([1, 3, 16]),
       groups=st.sampled_from([1, 2, 6, 36]), x_groups=st.sampled_from(["tensor", "token", "group"]),
       w_groups=st.booleans(), asymmetric=st.booleans(), seed=st.integers(0, 99))
def test_every_granularity(m, n, size, groups, x_groups, w_groups, asymmetric, seed):
    torch.manual_seed(seed)
    assert 36 > MOST_INTEGER_GROUPS >= 6
    k = size * groups
    x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    q = torch.randint(-8, 8, (n, k), dtype=torch.int8)
    columns = (n, groups) if w_groups else (n,)
    rows = {"tensor": (1,), "token": (m, 1), "group": (m, groups)}[x_groups]
    zero_point = torch.randint(-8, 8, columns, dtype=torch.int32) if asymmetric else None
    weight = (torch.rand(columns) * 0.1 + 0.01, zero_point)
    activation = (torch.rand(rows) * 0.1 + 0.01, torch.randint(0, 256, rows, dtype=torch.int32))
    y = int8_linear_general_aten(x, q, *weight, *activation, None, "none", None, *FLOAT)
    expected = int8_linear_naive(x, q, *weight, *activation)
    assert (y.double() - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-4


def test_group_sizes_of_the_two_operands_may_differ():
    torch.manual_seed(0)
    x, q = torch.randint(0, 256, (2, 5, 24), dtype=torch.uint8), torch.randint(-128, 128, (7, 24), dtype=torch.int8)
    weight = (torch.rand(7, 2) + 0.1, None)
    activation = (torch.rand(2, 5, 6) + 0.1, torch.randint(0, 256, (2, 5, 6), dtype=torch.int32))
    y = int8_linear_general_aten(x, q, *weight, *activation, None, "none", None, *FLOAT)
    torch.testing.assert_close(y.double(), int8_linear_naive(x, q, *weight, *activation), rtol=1e-5, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 40), k=st.integers(1, 70), n=st.integers(1, 40), per_token=st.booleans(),
       low=st.sampled_from([0, -128]))
def test_integer_matmuls_are_exact(m, k, n, per_token, low):
    dtype = torch.int8 if low else torch.uint8
    x, q = torch.randint(low, low + 256, (m, k), dtype=dtype), torch.randint(-128, 128, (n, k), dtype=torch.int8)
    zero = torch.randint(low, low + 256, (m, 1) if per_token else (1, 1), dtype=torch.int32)
    sums = int_matmul(x, q, zero, q.sum(1, dtype=torch.int32))
    assert sums.dtype == torch.int32
    assert torch.equal(sums.long(), (x.long() - zero) @ q.long().T)


@pytest.mark.parametrize("ends", [[4, 4, 9], [0, 0, 13], [13, 13, 13], [2, 5, 11]])
@pytest.mark.parametrize("per_token", [False, True])
def test_experts(ends, per_token):
    torch.manual_seed(1)
    x, q = torch.randint(0, 256, (13, 20), dtype=torch.uint8), torch.randint(-128, 128, (3, 11, 20), dtype=torch.int8)
    rows = (13, 1) if per_token else (1,)
    x_scale, zero = torch.rand(rows) + 0.1, torch.randint(0, 256, rows, dtype=torch.int32)
    scale, bias, offsets = torch.rand(3, 11) * 0.01, torch.randn(3, 11), torch.tensor(ends, dtype=torch.int32)
    args = (x, q, scale, q.sum(-1, dtype=torch.int32), x_scale, zero, bias, offsets)
    y = int8_experts_aten(*args)
    expected = int8_experts_naive(x, q, scale, x_scale, zero, bias, offsets)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    torch.library.opcheck(int8_experts_aten, args, test_utils=("test_schema", "test_faketensor"))
