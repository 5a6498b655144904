"""The operator's fake implementation, in a compiled graph, and what runs where there is no kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code

from torchqx.errors import ShapeError, UnsupportedError
from torchqx.inductor_kernels.few_rows_linear import is_supported, load
from torchqx.inductor_kernels.few_rows_linear.cpu import first_call

op = torch.ops.torchqx.few_rows_linear.default
needs_kernel = pytest.mark.skipif(not is_supported(torch.device("cpu"), torch.float32), reason="no kernel here")


def test_fake_shapes_and_dtypes() -> None:
    with torch._subclasses.FakeTensorMode():
        x, weight, bias = torch.empty(2, 3, 100).mT, torch.empty(63, 3), torch.empty(63)
        y = op(x, weight, bias)
        assert (y.shape, y.dtype, y.is_contiguous()) == ((2, 100, 63), torch.float32, True)
        assert op(x.bfloat16(), weight.bfloat16(), None).dtype == torch.bfloat16
        with pytest.raises(ShapeError, match="does not fit x"):
            op(x, weight[:, :2], None)
        with pytest.raises(ShapeError, match="does not fit 63 results"):
            op(x, weight, bias[:5])
        with pytest.raises(UnsupportedError, match=r"torch\.bfloat16, torch\.float32"):
            op(x, weight.bfloat16(), None)
        with pytest.raises(UnsupportedError, match=r"torch\.float64"):
            op(x.double(), weight.double(), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_kernel_torch_computes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("torchqx.inductor_kernels.few_rows_linear.cpu.is_supported", lambda device, dtype: False)
    x, weight, bias = (torch.randn(size, dtype=dtype) for size in ((2, 63), (100, 63), (100,)))
    assert torch.equal(first_call(x, weight, bias), F.linear(x, weight, bias))


@needs_kernel
def test_opcheck() -> None:
    load()
    for bias in (None, torch.randn(5)):
        torch.library.opcheck(op, (torch.randn(2, 3, 63), torch.randn(5, 63), bias),
                              test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


@needs_kernel
def test_compiled_with_symbolic_rows() -> None:
    """The weight is read as it lies, transposed and back."""
    load()

    def f(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return op(x * 2, torch.t(weight.T), None) + 1

    weight = torch.randn(100, 63)
    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    with torch.no_grad():
        _, (code,) = run_and_get_code(compiled, torch.randn(2, 63), weight)
        assert code.count("torch.ops.torchqx.few_rows_linear.default(") == 1
        for rows in (2, 3, 20):
            x = torch.randn(rows, 63)
            torch.testing.assert_close(compiled(x, weight), F.linear(x * 2, weight) + 1, rtol=1e-4, atol=1e-4)
