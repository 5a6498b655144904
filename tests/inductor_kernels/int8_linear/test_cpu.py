"""The C++ kernel against the float64 formula."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.inductor_kernels.int8_linear import ACTIVATIONS, column_sums, is_supported, load, pack_int8_weight
from torchqx.inductor_kernels.int8_linear.activations import FUNCTIONS
from torchqx.inductor_kernels.int8_linear.naive import int8_linear_naive

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not is_supported(CPU), reason="no AVX512-VNNI or no C++ compiler")
op = torch.ops.torchqx.int8_linear.default
SHAPES = [((1,), 63, 100), ((2,), 4, 1), ((7,), 1, 65), ((6,), 100, 63), ((3, 5), 1000, 130), ((131,), 66, 1000)]


@pytest.fixture(scope="module", autouse=True)
def kernel():
    load()


def run(o, activation="none", residual=None, out=(None, None, 0, 255), dtype=torch.float32, bias=True):
    return op(o.x, o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias if bias else None,
              activation, residual, *out, dtype)


def reference(o, activation="none", residual=None, out=(None, None, 0, 255), bias=True):
    return int8_linear_naive(o.x, o.qdata, o.weight_scale, None, o.x_scale, o.x_zero_point, o.bias if bias else None,
                             activation, residual, *out)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("lead", "k", "n"), SHAPES)
def test_odd_sizes(operands, poisoned, lead, k, n, per_token):
    o = operands(lead, k, n, per_token)
    for bias in (True, False):
        poisoned((*lead, n), torch.float32)
        y = run(o, bias=bias)
        assert y.shape == (*lead, n)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), reference(o, bias=bias), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("k", "n"), [(63, 1000), (100, 63), (63, 100)])
def test_every_split_of_rows_into_tiles(operands, poisoned, k, n):
    """Requantized and bfloat16, whose stores cross the end of the last panel unless it is masked."""
    o = operands((100,), k, n, per_token=True)
    every, out = (o.x, o.x_scale, o.x_zero_point), (torch.rand(n) * 20, torch.rand(n) * 100, 0, 255)
    codes, floats = run(o, "silu", out=out), run(o, dtype=torch.bfloat16)
    assert (codes.double() - reference(o, "silu", out=out)).abs().max() <= 0.5 + 1e-3
    assert torch.equal(floats, run(o).bfloat16())
    for m in (*range(1, 18), 63):
        o.x, o.x_scale, o.x_zero_point = (t[:m] for t in every)
        poisoned((m, n), torch.uint8)
        assert torch.equal(run(o, "silu", out=out), codes[:m])
        poisoned((m, n), torch.bfloat16)
        assert torch.equal(run(o, dtype=torch.bfloat16), floats[:m])


@pytest.mark.parametrize("own", ["x_scale", "x_zero_point"])
def test_rows_may_share_one_of_the_two_parameters(operands, own):
    o, rows = operands((13,), 100, 70), operands((13,), 100, 70, per_token=True)
    setattr(o, own, getattr(rows, own))
    torch.testing.assert_close(run(o).double(), reference(o), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_and_residual(operands, poisoned, activation, dtype):
    o = operands((17,), 100, 200, per_token=True)
    residual = torch.randn(17, 200, dtype=dtype)
    poisoned((17, 200), dtype)
    y = run(o, activation, residual, dtype=dtype)
    assert y.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 0.0079
    torch.testing.assert_close(y.double(), reference(o, activation, residual), rtol=tolerance, atol=tolerance)


def test_bfloat16_is_the_nearest(operands):
    o = operands((9,), 100, 70)
    assert torch.equal(run(o, dtype=torch.bfloat16), run(o).bfloat16())


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_activation_over_its_whole_range(activation):
    """The one sum is 1, so the scale of a column is the point at which it evaluates the function."""
    n = 4096
    points = torch.linspace(-20, 20, n)
    one = torch.ones(1, dtype=torch.int32)
    weight = torch.ones(n, 1, dtype=torch.int8)
    y = op(torch.full((1, 1), 2, dtype=torch.uint8), pack_int8_weight(weight), points, column_sums(weight),
           one.float(), one, None, activation, None, None, None, 0, 255, torch.float32)[0]
    exact = points.double()
    expected = FUNCTIONS[activation](exact)
    assert ((y - expected).abs() / exact.abs().clamp(min=1)).max() < 3e-7
    large = torch.tensor([-1e30, -100.0, 100.0, 1e30, float("nan"), float("inf")])
    y = op(torch.full((1, 1), 2, dtype=torch.uint8), pack_int8_weight(weight[:6]), large, column_sums(weight[:6]),
           one.float(), one, None, activation, None, None, None, 0, 255, torch.float32)[0]
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 100.0, 1e30, float("nan"), float("inf")]), equal_nan=True)


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_requantized(operands, poisoned, activation, one):
    o = operands((3, 11), 100, 150)
    out = (torch.rand(1 if one else 150) * 40, torch.rand(1 if one else 150) * 100, 3, 200)
    poisoned((3, 11, 150), torch.uint8)
    codes = run(o, activation, out=out)
    assert codes.dtype == torch.uint8
    before_rounding = reference(o, activation, out=out)
    assert codes.min() == 3
    assert codes.max() == 200
    assert (codes.double() - before_rounding).abs().max() <= 0.5 + 1e-3


def test_rounds_half_to_even():
    weight = torch.ones(4, 1, dtype=torch.int8)
    halves = torch.tensor([0.5, 1.5, 2.5, 3.5])
    zero, unit = torch.zeros(1, dtype=torch.int32), torch.ones(1)
    codes = op(torch.ones(1, 1, dtype=torch.uint8), pack_int8_weight(weight), halves, column_sums(weight), unit, zero,
               None, "none", None, unit, torch.zeros(1), 0, 255, torch.float32)
    assert codes.tolist() == [[0, 2, 2, 4]]


def test_codes_of_values_beyond_int32_and_int16():
    points = torch.tensor([1e30, 3e9, 70000.0, 201.0, 7.0, -1.0, -70000.0, -3e9, -1e30])
    weight, zero, unit = torch.ones(9, 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int32), torch.ones(1)
    codes = op(torch.ones(1, 1, dtype=torch.uint8), pack_int8_weight(weight), points, column_sums(weight), unit, zero,
               None, "none", None, unit, torch.zeros(1), 5, 200, torch.float32)
    assert codes.tolist() == [[200, 200, 200, 200, 7, 5, 5, 5, 5]]


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 40), k=st.integers(1, 300), n=st.integers(1, 200), seed=st.integers(0, 99))
def test_sums_are_exact(m, k, n, seed):
    torch.manual_seed(seed)
    x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    q = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    zero = torch.randint(0, 256, (m, 1), dtype=torch.int32)
    y = op(x, pack_int8_weight(q), torch.ones(n), column_sums(q), torch.ones(1), zero, None, "none", None, None, None,
           0, 255, torch.float32)
    exact = (x.long() - zero) @ q.long().T
    assert torch.equal(y, exact.float())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_result_for_any_number_of_threads_and_rows(operands, threads):
    """A row's result does not depend on which block or thread it falls into."""
    o = operands((1000,), 255, 256)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(o, "gelu")
        torch.set_num_threads(threads)
        assert torch.equal(run(o, "gelu"), expected)
        o.x = o.x[500:508]
        assert torch.equal(run(o, "gelu"), expected[500:508])
    finally:
        torch.set_num_threads(before)


def test_large_reduction_does_not_saturate():
    k = 20000
    x, q = torch.full((1, k), 255, dtype=torch.uint8), torch.full((1, k), -128, dtype=torch.int8)
    y = op(x, pack_int8_weight(q), torch.ones(1), column_sums(q), torch.ones(1), torch.zeros(1, dtype=torch.int32),
           None, "none", None, None, None, 0, 255, torch.float32)
    assert y.item() == -255 * 128 * k


def test_strided_inputs_scalars_and_empty(operands):
    o = operands((12,), 64, 80)
    o.x_scale, o.x_zero_point = o.x_scale[0], o.x_zero_point[0]
    expected = run(o, residual=torch.ones(12, 80))
    o.x = torch.stack([o.x, o.x], -1)[..., 0]
    assert not o.x.is_contiguous()
    assert torch.equal(run(o, residual=torch.ones(80, 12).T), expected)
    o.x = o.x[:0]
    assert run(o).shape == (0, 80)


def test_wrong_operands_are_refused(operands):
    o = operands((4,), 64, 80)
    with pytest.raises(RuntimeError, match="column_sum"):
        op(o.x, o.packed, o.weight_scale, o.column_sum[:3], o.x_scale, o.x_zero_point, None, "none", None, None, None,
           0, 255, torch.float32)
    with pytest.raises(RuntimeError, match="residual"):
        run(o, residual=torch.ones(1, 80))
    with pytest.raises(RuntimeError, match="activation"):
        run(o, "tanh")
    o.x = o.x.to(torch.int8)
    with pytest.raises(RuntimeError, match="x must"):
        run(o)


PROGRAM = """
import torch
from torchqx.inductor_kernels.int8_linear import column_sums, pack_int8_weight
q = torch.ones(3, 5, dtype=torch.int8)
y = torch.ops.torchqx.int8_linear(torch.ones(2, 5, dtype=torch.uint8), pack_int8_weight(q), torch.ones(3),
    column_sums(q), torch.ones(1), torch.zeros(1, dtype=torch.int32), None, "none", None, None, None, 0, 255,
    torch.float32)
assert y.tolist() == [[5.0] * 3] * 2, y
"""


def test_first_call_builds_also_in_processes_that_start_together(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")  # spares Inductor's own test compilations
    processes = [subprocess.Popen([sys.executable, "-W", "error::UserWarning", "-c", PROGRAM]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
