"""The operator inside compiled graphs, and its fake implementation."""

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code

from torchqx.errors import ShapeError
from torchqx.inductor_kernels.int8_linear import (
    column_sums,
    int8_linear_aten,
    is_supported,
    load,
    pack_int8_weight,
    quantize_static,
)
from torchqx.inductor_kernels.int8_linear.cpu import first_call
from torchqx.inductor_kernels.int8_linear.naive import int8_linear_naive

op = torch.ops.torchqx.int8_linear.default
FLOAT = (None, None, 0, 255, torch.float32)
needs_kernel = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no AVX512-VNNI or no C++ compiler")


def test_fake_shapes_and_dtypes(operands):
    o = operands((2, 5), 63, 100)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (o.x, o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point)]
        y = op(*fake, None, "none", None, None, None, 0, 255, torch.bfloat16)
        assert (y.shape, y.dtype) == ((2, 5, 100), torch.bfloat16)
        y = op(*fake, None, "none", None, fake[2], fake[2], 0, 255, torch.bfloat16)
        assert y.dtype == torch.uint8
        with pytest.raises(ShapeError, match="does not fit"):
            op(fake[0][..., :60], *fake[1:], None, "none", None, *FLOAT)


def test_without_a_kernel_the_formula_runs_on_the_unpacked_weight(operands, monkeypatch):
    monkeypatch.setattr("torchqx.inductor_kernels.int8_linear.cpu.is_supported", lambda device: False)
    o = operands((6,), 63, 100, per_token=True)
    args = (o.x_scale, o.x_zero_point, o.bias, "relu", None)
    y = first_call(o.x, o.packed, o.weight_scale, o.column_sum, *args, *FLOAT)
    torch.testing.assert_close(y.double(), int8_linear_naive(o.x, o.qdata, o.weight_scale, None, *args),
                               rtol=1e-5, atol=1e-5)


@needs_kernel
def test_opcheck(operands):
    load()
    o = operands((6,), 63, 100, per_token=True)
    args = (o.x, o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias, "gelu", None, *FLOAT)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def feed_forward(x, norm, mul, add, zero, up, scale, sums, down, down_scale, down_sums):
    """Norm, quantize; up with GELU and requantization; down with the residual: what a block becomes."""
    q = quantize_static(F.layer_norm(x, (64,), norm), mul, add, 0, 255)
    hidden = op(q, up, scale, sums, mul, zero, None, "gelu", None, mul, add, 0, 255, torch.float32)
    return op(hidden, down, down_scale, down_sums, mul, zero, None, "none", x, *FLOAT)


@needs_kernel
def test_block_is_one_generated_kernel_and_two_calls():
    load()
    torch._dynamo.reset()
    torch.manual_seed(0)
    up, down = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((256, 64), (64, 256)))
    arguments = (torch.rand(64), torch.tensor([30.0]), torch.tensor([100.0]), torch.tensor([100], dtype=torch.int32),
                 pack_int8_weight(up), torch.rand(256) * 1e-5, column_sums(up),
                 pack_int8_weight(down), torch.rand(64) * 1e-5, column_sums(down))
    compiled = torch.compile(feed_forward, fullgraph=True, dynamic=True)
    with torch.no_grad():
        _, (code,) = run_and_get_code(compiled, torch.randn(2, 10, 64), *arguments)
        assert code.count("torch.ops.torchqx.int8_linear.default(") == 2
        assert code.count("async_compile.cpp_pybinding(") == 1
        for shape in ((2, 10, 64), (3, 7, 64), (1, 1, 64)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x, *arguments), feed_forward(x, *arguments), rtol=1e-3, atol=1e-3)


@needs_kernel
def test_a_transposed_producer_arrives_contiguous(operands):
    """Inductor may pick another layout for a producer; the operator's result must not depend on it."""
    load()
    torch._dynamo.reset()
    o = operands((16,), 64, 80)

    def f(x, residual):
        return op((x.T + 1).to(torch.uint8), o.packed, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, None,
                  "none", residual.T * 2, *FLOAT)

    x, residual = torch.rand(64, 16) * 200, torch.randn(80, 16)
    torch.testing.assert_close(torch.compile(f)(x, residual), f(x, residual))


def test_the_formula_compiles_to_one_matmul_and_one_kernel(operands):
    torch._dynamo.reset()
    o = operands((20,), 64, 80)
    args = (o.x, o.qdata, o.weight_scale, o.column_sum, o.x_scale, o.x_zero_point, o.bias, "gelu", torch.randn(20, 80))
    with torch.no_grad():
        y, (code,) = run_and_get_code(torch.compile(int8_linear_aten, fullgraph=True), *args, *FLOAT)
    assert code.count("extern_kernels._int_mm(") == 1
    assert code.count("async_compile.cpp_pybinding(") == 1
    torch.testing.assert_close(y, int8_linear_aten(*args, *FLOAT), rtol=1e-5, atol=1e-5)
