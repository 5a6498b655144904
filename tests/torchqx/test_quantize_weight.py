"""A float parameter and a site's solution -> the storage tensor that computes the same, up to rounding."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchqx.errors import NonFiniteError
from torchqx.layouts import WeightLayout
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard
from torchqx.storage_matmul import matmul_experts, matmul_rows

SHAPES = {WeightLayout.OUT_IN: (5, 24), WeightLayout.IN_OUT: (24, 5), WeightLayout.CONV: (5, 6, 2, 2),
          WeightLayout.EXPERTS_OUT_IN: (3, 5, 24), WeightLayout.EXPERTS_IN_OUT: (3, 24, 5)}
WEIGHTS = [AffineQuantizer(8, symmetric, kind, size, signed=True) for symmetric in (True, False)
           for kind, size in (("tensor", None), ("channel", None), ("group", 8))]


def parameters(weight: AffineQuantizer, shift: bool = True) -> SiteParameters:
    random = torch.Generator().manual_seed(0)
    return SiteParameters(AffineQuantizer(), weight, torch.randn(24, generator=random) * 20 if shift else None,
                          torch.rand(24, generator=random) * 9 + 1, torch.tensor(-3.0), torch.tensor(3.0))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda q: f"{q.granularity}, {'' if q.symmetric else 'a'}symmetric")
@pytest.mark.parametrize("layout", WeightLayout)
def test_dequantized_is_the_parameter_up_to_half_a_step(layout: WeightLayout, weight: AffineQuantizer) -> None:
    parameter = torch.randn(SHAPES[layout])
    site = parameters(weight)
    stored = quantize_weight(parameter, layout, "site", site)
    assert stored.shape == parameter.shape
    assert stored.dtype == parameter.dtype
    error = layout.to_matrix(stored.dequantize() - parameter) * site.scale
    step = (stored.transformed_matrix().amax() - stored.transformed_matrix().amin()) / 127
    assert float(error.abs().max()) < step
    assert float((stored.dequantize() - parameter).norm() / parameter.norm()) < 0.03


def undone(rows: Tensor, site: SiteParameters) -> Tensor:
    """The activation whose transform is ``rows``."""
    rows = rows * (1.0 if site.scale is None else site.scale) + (0.0 if site.shift is None else site.shift)
    rows = rows if site.rotation is None else site.rotation.apply_transpose(rows)
    return rows if site.norm is None else rows * site.norm


@given(st.integers(0, 2**31), st.booleans())
def test_shifted_and_scaled_rows_give_the_float_result(seed: int, shift: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    parameter = torch.randn(5, 24, generator=random)
    site = parameters(WEIGHTS[1], shift)
    stored = quantize_weight(parameter, WeightLayout.OUT_IN, "site", site)
    rows = torch.rand(11, 24, generator=random) * 6 - 3  # within the static range once transformed
    rows = undone(rows, site)
    exact = rows @ parameter.T
    assert float((matmul_rows(rows, stored, None) - exact).norm() / exact.norm()) < 0.03


TURNS = [{"rotation": Hadamard(8, 3)}, {"norm": torch.arange(1.0, 25.0) - 30}, {"output_rotation": Hadamard(4, 1)},
         {"rotation": Hadamard(24), "norm": torch.arange(1.0, 25.0), "output_rotation": Hadamard(4)}]


@pytest.mark.parametrize("turns", TURNS, ids=lambda t: " and ".join(t))
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("layout", WeightLayout)
def test_turned_weights(layout: WeightLayout, turns: dict, plain: bool) -> None:
    shape = tuple(8 if n == 5 else n for n in SHAPES[layout])
    parameter = torch.randn(shape)
    site = replace(parameters(WEIGHTS[1], not plain), **turns)
    site = replace(site, scale=None) if plain else site
    stored = quantize_weight(parameter, layout, "site", site)
    back = stored.dequantize()
    assert back.shape == parameter.shape
    step = (stored.transformed_matrix().amax() - stored.transformed_matrix().amin()) / 127
    error = site.transform(24).weight(layout.to_matrix(back - parameter))
    assert float(error.norm()) < float(step) * error.numel() ** 0.5
    matrix = layout.to_matrix(parameter)
    rows, bias = undone(torch.rand(11, 24) * 6 - 3, site), torch.randn(8)
    if matrix.dim() == 3:
        y, expected = matmul_experts(rows, stored, torch.tensor([4, 4, 11])), rows @ matrix[0].T
        expected[4:] = rows[4:] @ matrix[2].T
    else:
        y, expected = matmul_rows(rows, stored, bias), rows @ matrix.T + bias
    assert float((y - expected).norm() / expected.norm()) < 0.03


def test_experts_take_their_rows() -> None:
    parameter = torch.randn(3, 5, 24)
    stored = quantize_weight(parameter, WeightLayout.EXPERTS_OUT_IN, "site", parameters(WEIGHTS[1]))
    rows, offsets = torch.rand(9, 24), torch.tensor([2, 2, 7], dtype=torch.int32)
    rows = undone(rows, parameters(WEIGHTS[1]))
    y = matmul_experts(rows, stored, offsets)
    expected = torch.cat([rows[:2] @ parameter[0].T, rows[2:7] @ parameter[2].T])
    assert float((y[:7] - expected).norm() / expected.norm()) < 0.03
    assert not y[7:].any()


def test_a_static_range_becomes_scale_and_zero_point() -> None:
    stored = quantize_weight(torch.randn(5, 24), WeightLayout.OUT_IN, "site", parameters(WEIGHTS[1]))
    assert float(stored.act_scale) == pytest.approx(6 / 255)
    assert int(stored.act_zero_point) == 128
    dynamic = SiteParameters(AffineQuantizer(granularity="token", dynamic=True), WEIGHTS[1])
    assert quantize_weight(torch.randn(5, 24), WeightLayout.OUT_IN, "site", dynamic).act_scale is None


def test_nan_names_the_site() -> None:
    with pytest.raises(NonFiniteError, match=r"block\.up"):
        quantize_weight(torch.full((5, 24), float("nan")), WeightLayout.OUT_IN, "block.up", parameters(WEIGHTS[0]))
