import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqx.errors import AlreadyQuantizedError, CheckpointError, ShapeError
from torchqx.fx_passes.derived import norm, output_signs, signs
from torchqx.layouts import WeightLayout
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.quantizers import AffineQuantizer
from torchqx.registries import rebuild_quantized_weight
from torchqx.rotations import Hadamard
from torchqx.storage import QuantizedWeight
from torchqx.storage_matmul import matmul_rows

COLUMNS, ROWS = 100, 63


def matrix() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))


def made(layout: WeightLayout = WeightLayout.OUT_IN, parameter: Tensor | None = None, *, static: bool = False,
         shift: bool = True, dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(2)
    parameters = SiteParameters(
        AffineQuantizer() if static else AffineQuantizer(granularity="token", dynamic=True),
        AffineQuantizer(symmetric=True, granularity="channel", signed=True),
        torch.randn(COLUMNS, generator=generator) if shift else None,
        torch.rand(COLUMNS, generator=generator) + 0.5 if shift else None,
        torch.tensor(-6.0) if static else None, torch.tensor(6.0) if static else None)
    return quantize_weight((matrix() if parameter is None else parameter).to(dtype), layout, "site", parameters)


def close(result: Tensor, reference: Tensor, tolerance: float = 0.04) -> None:
    assert result.shape == reference.shape
    assert result.dtype == reference.dtype
    assert (result - reference).norm() < tolerance * reference.norm()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_the_float_one_within_8_bits(static: bool, dtype: torch.dtype) -> None:
    x, bias = torch.randn(3, 5, COLUMNS).to(dtype), torch.randn(ROWS).to(dtype)
    close(F.linear(x, made(static=static, dtype=dtype), bias), F.linear(x, matrix().to(dtype), bias))


def test_every_spelling_of_a_weighted_matmul_quantizes() -> None:
    x, bias = torch.randn(9, COLUMNS), torch.randn(ROWS)
    rows = matmul_rows(x, made(), None)
    out_in, in_out = made(), made(WeightLayout.IN_OUT, matrix().t())
    for result in (x @ in_out, torch.matmul(x, in_out), torch.mm(x, in_out), (out_in @ x.t()).t(),
                   torch.addmm(bias, x, in_out) - bias, F.linear(input=x, weight=out_in)):
        torch.testing.assert_close(result, rows, rtol=1e-4, atol=1e-4)


def test_convolution() -> None:
    kernel = matrix().reshape(ROWS, 4, 5, 5)
    x = torch.randn(2, 4, 10, 15)
    close(F.conv2d(x, made(WeightLayout.CONV, kernel), None, 5), F.conv2d(x, kernel, None, 5))


def test_anything_else_sees_the_float_weight() -> None:
    weight = made()
    close(weight + 0, matrix())
    assert torch.equal(weight.t() @ torch.eye(ROWS), weight.dequantize().t() @ torch.eye(ROWS))
    assert torch.equal(F.embedding(torch.tensor([3, 0]), weight), weight.dequantize()[[3, 0]])


def test_writing_and_wrong_rows_are_typed_errors() -> None:
    with pytest.raises(AlreadyQuantizedError, match="Remedy"):
        made().mul_(2)
    with pytest.raises(ShapeError, match="99"):
        F.linear(torch.randn(2, 99), made())


def test_moving_between_dtypes_changes_what_it_stands_for() -> None:
    weight = made()
    half = weight.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.scale.dtype == torch.float32
    assert torch.equal(half.qdata, weight.qdata)
    assert half.dequantize().dtype == torch.bfloat16
    module = nn.Linear(COLUMNS, ROWS)
    module.weight = nn.Parameter(weight, requires_grad=False)
    assert module.to(torch.bfloat16)(torch.randn(2, COLUMNS).bfloat16()).dtype == torch.bfloat16


def test_copies_are_whole_and_apart() -> None:
    weight = made(static=True)
    for other in (copy.deepcopy(weight), weight.clone()):
        names, attributes = weight.__tensor_flatten__()
        assert other.__tensor_flatten__() == (names, attributes)
        assert all(torch.equal(getattr(other, n), getattr(weight, n)) for n in names)
        assert all(getattr(other, n).data_ptr() != getattr(weight, n).data_ptr() for n in names)


def test_it_never_requires_a_gradient() -> None:
    parameter = nn.Parameter(made(), requires_grad=True)
    assert isinstance(parameter, QuantizedWeight)
    assert not parameter.requires_grad
    assert not parameter.requires_grad_().requires_grad


def test_pickled_after_use(tmp_path: Path) -> None:
    weight = made(static=True)
    x = torch.randn(4, COLUMNS)
    expected = F.linear(x, weight)
    torch.save(weight, tmp_path / "w.pt")
    assert torch.equal(F.linear(x, torch.load(tmp_path / "w.pt", weights_only=True)), expected)


def turned() -> QuantizedWeight:
    token = AffineQuantizer(granularity="token", dynamic=True)
    site = SiteParameters(token, AffineQuantizer(8, True, "channel", signed=True), torch.randn(COLUMNS),
                          torch.rand(COLUMNS) + 0.5, rotation=Hadamard(20, 4), norm=torch.rand(COLUMNS) + 0.5,
                          output_rotation=Hadamard(1, 2))
    return quantize_weight(matrix(), WeightLayout.OUT_IN, "site", site)


def test_rotations_go_along(tmp_path: Path) -> None:
    weight = turned()
    x = torch.randn(4, COLUMNS)
    expected = F.linear(x, weight)
    close(expected, x @ matrix().T)
    torch.save(weight, tmp_path / "w.pt")
    target = made()
    F.linear(x, target)  # it has decoded what it was
    with torch.no_grad():
        target.copy_(weight)
    for other in (torch.load(tmp_path / "w.pt", weights_only=True), copy.deepcopy(weight), weight.clone(), target):
        assert torch.equal(F.linear(x, other), expected)
        assert torch.equal(other.norm, weight.norm)
    half = weight.to(torch.bfloat16)
    assert (half.hadamard, half.output_hadamard) == (Hadamard(20, 4), Hadamard(1, 2))


def test_pickled_before_there_were_rotations() -> None:
    """Neither the attributes nor their names were there."""
    weight = made()
    x = torch.randn(4, COLUMNS)
    expected = F.linear(x, weight)
    for name in ("rotation", "output_rotation"):
        del weight.__dict__[name]
    weight.__dict__.pop("_flat", None)
    assert torch.equal(F.linear(x, weight), expected)
    assert torch.equal(F.linear(x, copy.deepcopy(weight)), expected)


def test_written_before_there_were_rotations() -> None:
    """What torchao's reader hands over for a file of that time."""
    weight = made(static=True)
    names, attributes = weight.__tensor_flatten__()
    old = {k: v for k, v in attributes.items() if "rotation" not in k}
    old |= {k: v.replace(',"clip_ratio":1.0', "") for k, v in old.items() if k.endswith("quantizer")}
    assert "clip" not in str(old)
    loaded = rebuild_quantized_weight(**old, **{name: getattr(weight, name) for name in names})
    x = torch.randn(4, COLUMNS)
    assert torch.equal(F.linear(x, loaded), F.linear(x, weight))
    assert loaded.activation_spec == weight.activation_spec


def test_signs_of_a_graph_are_ordinary_tensors() -> None:
    """Also where eager mode made them first, in inference mode."""
    weight = turned()
    with torch.inference_mode():
        F.linear(torch.randn(4, COLUMNS), weight)
    made_of = [signs([weight], []), output_signs([weight], []), norm([weight], [])]
    assert not any(t.is_inference() for t in made_of)
    assert [t.shape[0] for t in made_of] == [COLUMNS, ROWS, COLUMNS]


def test_unpickling_damaged_components(tmp_path: Path) -> None:
    weight = made()
    weight.scale[3] = float("nan")
    torch.save({"w": weight}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="scale holds values"):
        torch.load(tmp_path / "w.pt", weights_only=True)
