"""``gate``: two matmuls side by side, one half the other's gate, against float64 beside the unfused way."""

import pytest
import torch
from torch import Tensor

from torchqx.errors import ShapeError
from torchqx.inductor_kernels.int8_linear import (
    ACTIVATIONS,
    int8_linear_aten,
    is_supported,
    load,
    pack_int8_weight,
)
from torchqx.inductor_kernels.int8_linear.activations import activate
from torchqx.inductor_kernels.int8_linear.cpu import first_call
from torchqx.inductor_kernels.int8_linear.naive import int8_linear_naive

op = torch.ops.torchqx.int8_linear.default
needs_kernel = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no AVX512-VNNI or no C++ compiler")
FLOAT = (None, None, 0, 255)
SHAPES = [((1,), 63, 1), ((7,), 100, 31), ((2, 3), 63, 33), ((100,), 63, 63), ((7,), 63, 100), ((19,), 100, 1000)]


@pytest.fixture
def halves(operands):
    """Operands of two matmuls of N columns each; ``packed`` holds their packed weights one behind the other."""
    def make(lead, k, n, per_token=False):
        o = operands(lead, k, 2 * n, per_token)
        o.packed = torch.cat([pack_int8_weight(half) for half in o.qdata.chunk(2)])
        return o

    return make


def run(o, activation="silu", residual=None, out=FLOAT, dtype=torch.float32, gate=0):
    return op(o.x, o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias, activation, residual,
              *out, dtype, gate)


def unfused(o, activation="silu", dtype=torch.float32, gate=0):
    """The two matmuls, each rounded to ``dtype``, and their product in torch's functions."""
    parts = [[t.chunk(2)[i] for t in (o.packed, o.weight_scale, o.column_sum, o.bias)] for i in range(2)]
    y = torch.cat([op(o.x, packed, scale, sums, o.x_scale, o.x_zero_point, bias, "none", None, *FLOAT, dtype)
                   for packed, scale, sums, bias in parts], -1)
    return activate(y, activation, gate)


def reference(o, activation="silu", residual=None, out=FLOAT, gate=0):
    return int8_linear_naive(o.x, o.qdata, o.weight_scale, None, o.x_scale, o.x_zero_point, o.bias, activation,
                             residual, *out, gate)


def error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


@needs_kernel
@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("lead", "k", "n"), SHAPES)
def test_odd_sizes(halves, poisoned, lead, k, n, per_token, gate):
    load()
    o = halves(lead, k, n, per_token)
    for bias in (o.bias, torch.zeros(2 * n)):
        o.bias = bias
        exact = reference(o, gate=gate)
        poisoned((*lead, n), torch.float32)
        y = run(o, gate=gate)
        assert y.shape == (*lead, n)
        assert y.dtype == torch.float32
        assert error(y, exact) <= 2 * error(unfused(o, gate=gate), exact) + 1e-6


@needs_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(halves, poisoned, activation):
    """In bfloat16 without the rounding of gate and partner, so closer than the unfused way."""
    load()
    o = halves((17,), 100, 200, per_token=True)
    exact = reference(o, activation)
    assert error(run(o, activation), exact) <= 2 * error(unfused(o, activation), exact) + 1e-7
    poisoned((17, 200), torch.bfloat16)
    y = run(o, activation, dtype=torch.bfloat16)
    assert torch.equal(y, run(o, activation).bfloat16())
    assert error(y, exact) < 0.8 * error(unfused(o, activation, torch.bfloat16), exact)


@needs_kernel
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize(("n", "gate"), [(150, 0), (63, 1), (64, 0)])
def test_requantized(halves, poisoned, one, n, gate):
    load()
    o = halves((3, 11), 100, n, per_token=True)
    out = (torch.rand(1 if one else n) * 40, torch.rand(1 if one else n) * 100, 3, 200)
    poisoned((3, 11, n), torch.uint8)
    codes = run(o, "gelu", out=out, gate=gate)
    assert codes.dtype == torch.uint8
    assert codes.min() == 3
    assert codes.max() == 200
    assert (codes.double() - reference(o, "gelu", out=out, gate=gate)).abs().max() <= 0.5 + 2e-3


@needs_kernel
def test_residual_comes_after_the_product(halves):
    load()
    o = halves((9,), 100, 70)
    residual = torch.randn(9, 70)
    torch.testing.assert_close(run(o, residual=residual), run(o) + residual)


@needs_kernel
def test_halves_of_whole_panels_are_packed_as_one_weight(halves):
    o = halves((5,), 63, 128)
    assert torch.equal(o.packed, pack_int8_weight(o.qdata))


@needs_kernel
def test_same_result_for_any_number_of_threads_and_rows(halves):
    load()
    o = halves((500,), 255, 320)
    expected, before = run(o), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(run(o), expected)
    finally:
        torch.set_num_threads(before)
    o.x = o.x[250:261]
    assert torch.equal(run(o), expected[250:261])


@needs_kernel
def test_what_is_no_pair_of_halves_is_refused(halves):
    load()
    o = halves((4,), 64, 80)
    with pytest.raises(RuntimeError, match="gate"):
        run(o, gate=2)
    with pytest.raises(RuntimeError, match="residual"):
        run(o, residual=torch.ones(4, 160))
    o.weight_scale = o.weight_scale[1:]
    with pytest.raises(RuntimeError, match="gate"):
        run(o)


def test_fake_shapes(halves):
    o = halves((2, 5), 63, 100)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (o.x, o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point)]
        y = op(*fake, None, "silu", None, *FLOAT, torch.bfloat16, 0)
        assert (y.shape, y.dtype) == ((2, 5, 100), torch.bfloat16)
        for weight, scale in ((fake[1][1:], fake[2]), (fake[1], fake[2][1:])):
            with pytest.raises(ShapeError, match="does not fit"):
                op(fake[0], weight, scale, *fake[3:], None, "silu", None, *FLOAT, torch.bfloat16, 0)


@needs_kernel
def test_opcheck(halves):
    load()
    o = halves((6,), 63, 100, per_token=True)
    args = (o.x, o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias, "gelu", None, *FLOAT,
            torch.float32, 1)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("gate", [0, 1])
def test_without_a_kernel_the_formula_runs_on_the_unpacked_halves(halves, monkeypatch, gate):
    monkeypatch.setattr("torchqx.inductor_kernels.int8_linear.cpu.is_supported", lambda device: False)
    o = halves((6,), 63, 33, per_token=True)
    common = (o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias, "relu", None, *FLOAT, torch.float32,
              gate)
    exact = reference(o, "relu", gate=gate)
    for y in (first_call(o.x, o.packed, *common), int8_linear_aten(o.x, o.qdata, *common)):
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
