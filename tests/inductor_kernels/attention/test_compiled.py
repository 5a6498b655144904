"""The operator inside compiled graphs, its fake implementation, and what runs where there is no kernel."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from torchqx.errors import ShapeError
from torchqx.inductor_kernels.attention import attention_aten, attention_naive, is_supported, load
from torchqx.inductor_kernels.attention.cpu import first_call

op = torch.ops.torchqx.attention.default
FLOAT = (None, None, 0, 255)
CODES = (torch.full((1,), 50.0), torch.full((1,), 100.0), 3, 200)
needs_kernel = pytest.mark.skipif(not is_supported(torch.device("cpu"), torch.float32), reason="no kernel here")


def test_fake_shapes_dtypes_and_strides(operands) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        q, k, v = (mode.from_tensor(t) for t in operands(2, 4, 2, 5, 7, 16))
        y = op(q, k, v, None, 0.25, False, *FLOAT)
        assert (y.shape, y.dtype, y.stride()) == (q.shape, q.dtype, (320, 16, 64, 1))
        assert op(q, k, v, None, 0.25, False, q, q, 0, 255).dtype == torch.uint8
        with pytest.raises(ShapeError, match="4 dimensions"):
            op(q[0], k, v, None, 0.25, False, *FLOAT)


@pytest.mark.parametrize("out", [FLOAT, CODES], ids=["float", "codes"])
def test_without_a_kernel_torch_computes_the_same(operands, monkeypatch, out) -> None:
    monkeypatch.setattr("torchqx.inductor_kernels.attention.cpu.is_supported", lambda device, dtype: False)
    q, k, v = operands(2, 4, 2, 9, 9, 16)
    y = first_call(q, k, v, None, 0.25, True, *out)
    assert y.stride() == (9 * 64, 16, 64, 1)
    exact = attention_naive(q, k, v, None, 0.25, True, *out)
    assert (y - exact).abs().max() < (1e-5 if out is FLOAT else 0.501)


@needs_kernel
def test_opcheck(operands) -> None:
    load()
    for out in (FLOAT, CODES):
        torch.library.opcheck(op, (*operands(1, 4, 2, 6, 6, 16), None, 0.25, True, *out),
                              test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


@needs_kernel
def test_parts_of_a_wide_result_are_read_and_written_without_copies() -> None:
    """Compiled with symbolic sizes: nothing but the call between the producer of q, k and v and the result's rows."""
    load()

    def f(x, weight):
        batch, rows = x.shape[:2]
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in (x @ weight).split(64, -1))
        return op(q, k, v, None, 0.25, True, *FLOAT).transpose(1, 2).reshape(batch, rows, 64)

    weight = torch.randn(32, 192)
    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    with torch.no_grad():
        _, (code,) = run_and_get_code(compiled, torch.randn(2, 10, 32), weight)
        assert code.count("torch.ops.torchqx.attention.default(") == 1
        assert "async_compile.cpp_pybinding(" not in code
        for shape in ((2, 10, 32), (3, 7, 32), (1, 130, 32)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x, weight), f(x, weight), rtol=1e-4, atol=1e-5)


def test_the_formula_is_right_on_bfloat16(operands) -> None:
    q, k, v = operands(1, 4, 2, 9, 9, 16, torch.bfloat16)
    exact = attention_naive(q, k, v, None, 0.25)
    assert (attention_aten(q, k, v, None, 0.25, False, *FLOAT) - exact).norm() / exact.norm() < 0.004
