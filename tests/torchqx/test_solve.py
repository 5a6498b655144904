"""One site from statistics to parameters: ladder, budget, record, and what is dropped afterwards."""

import pytest
import torch
from torch import Tensor

from torchqx import HadamardConfig, MinMaxConfig, OutlierSuppressionPlusConfig
from torchqx.errors import ConfigError, NoCalibrationDataError, UnsupportedError
from torchqx.fx_passes.sites import Form
from torchqx.layouts import WeightLayout
from torchqx.quantizers import AffineQuantizer
from torchqx.recipe import AffineRecipe
from torchqx.rotations import Hadamard
from torchqx.site_state import Operation, SiteState
from torchqx.solve import FEW_ROWS, describe, outlier_ratio, solve_site, stored_bytes
from torchqx.storage_matmul import matmul_rows

K = 32


def state(recipe: AffineRecipe, x: Tensor | None, *shapes: tuple[int, int]) -> tuple[SiteState, list[Tensor]]:
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes or ((24, K),)]
    operations = [Operation(f"site.{i}:linear:0", WeightLayout.OUT_IN, f"site.{i}") for i in range(len(weights))]
    made = SiteState("site:linear:0", operations, Form.LINEAR, recipe)
    for i, weight in enumerate(weights):
        made.adopt(weight, i)
    if x is not None:
        made.observe(x, None)
    return made, weights


def uneven(rows: int = 200) -> Tensor:
    """Few huge rows: one range for all is too coarse for the others."""
    x = torch.randn(rows, K)
    x[::50] *= 300
    return x


def test_members_share_one_solution() -> None:
    recipe = OutlierSuppressionPlusConfig(shift=True, grid_steps=3, activation="static")
    made, weights = state(recipe, torch.randn(99, K), (24, K), (8, K))
    solve_site(made, weights)
    one, two = (made.quantized(w) for w in weights)
    assert torch.equal(one.shift, two.shift)
    assert torch.equal(one.smooth, two.smooth)
    assert torch.equal(one.per_tensor_scale, two.per_tensor_scale)
    assert made.record.operations == ["site.0:linear:0", "site.1:linear:0"]
    assert made.record.macs == 32 * K


def test_it_steps_to_tokens_and_then_to_float() -> None:
    made, weights = state(MinMaxConfig(), uneven())
    solve_site(made, weights)
    static, token = made.record.errors.values()
    assert static > 0.03 > token
    assert made.record.activation == "u8 affine per token, dynamic"
    assert "u8 affine per tensor, static" in made.record.reason
    assert "over the error budget" in made.record.reason
    assert made.parameters.act_low is None

    made, weights = state(MinMaxConfig(error_budget=1e-4, error_limit=1e-3), uneven())
    solve_site(made, weights)
    assert made.record.status == "float"
    assert made.parameters is None
    assert made.quantized(weights[0]) is None
    assert "above the error limit" in made.record.reason
    assert made.record.bytes_after == made.record.bytes_before == 4 * 24 * K


@pytest.mark.parametrize(("rows", "kind"), [(8, "per token, dynamic"), (4000, "per tensor, static")])
def test_a_static_range_has_to_hold_for_other_rows(rows: int, kind: str) -> None:
    """Each of a few heavy-tailed rows fits the range that it set itself: only what others' would leave of it counts."""
    recipe = OutlierSuppressionPlusConfig(grid_steps=5)
    x = torch.randn(rows, K, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 2, K)
    made, weights = state(recipe, x.clamp(-3, 3) if rows > 100 else x)
    solve_site(made, weights)
    assert made.record.activation == f"u8 affine {kind}"
    assert ("is over the error budget" in made.record.reason) == (rows == 8)


def test_of_a_single_row_nothing_is_known_of_others() -> None:
    """A range of its own where the recipe allows that; else the report says so, instead of giving a number."""
    made, weights = state(MinMaxConfig(), torch.randn(1, K))
    solve_site(made, weights)
    assert made.record.activation == "u8 affine per token, dynamic"
    assert made.record.reason == "u8 affine per tensor, static: calibrated on 1 row, which tells nothing of others"
    assert list(made.record.errors) == ["u8 affine per token, dynamic"]

    made, weights = state(MinMaxConfig(activation="static"), torch.randn(1, K))
    solve_site(made, weights)
    assert made.record.status == "quantized"
    assert made.record.reason == "calibrated on 1 row, which tells nothing of others"
    assert (made.record.error, made.record.errors) == (None, {})


@pytest.mark.parametrize(("rows", "activation", "said"), [(2, "static", True), (FEW_ROWS - 1, "static", True),
                                                          (FEW_ROWS, "static", False), (2, "token", False)])
def test_few_rows_are_said_to_be_few(rows: int, activation: str, said: bool) -> None:
    made, weights = state(MinMaxConfig(activation=activation), torch.randn(rows, K))
    solve_site(made, weights)
    assert made.record.reason == (f"calibrated on {rows} rows: the error is a rough estimate" if said else "")
    assert made.record.error > 0


def test_static_where_asked_for_whatever_its_error() -> None:
    made, weights = state(MinMaxConfig(activation="static"), uneven())
    solve_site(made, weights)
    assert made.record.status == "quantized"
    assert made.record.error > 0.03
    assert made.record.activation.endswith("static")
    assert not made.record.reason


@pytest.mark.parametrize(("statistics", "share"), [("mean_minmax", 0.5), ("percentile", 0.5), ("mse", 0.99)])
def test_statistics_narrow_a_static_range(statistics: str, share: float) -> None:
    x = torch.randn(400, K)
    x[0, 0] = 400.0
    spans = []
    for name in ("minmax", statistics):
        made, weights = state(MinMaxConfig(activation="static", statistics=name), x)
        solve_site(made, weights)
        spans.append(float(made.parameters.act_high - made.parameters.act_low))
    assert spans[0] > 400
    assert spans[1] < share * spans[0]


def test_what_was_seen_is_dropped_and_the_state_solved_once() -> None:
    made, weights = state(MinMaxConfig(), torch.randn(99, K))
    assert made.calibrating
    solve_site(made, weights)
    assert not made.calibrating
    assert not made.samples
    assert made.rows.sample.numel() == 0


def test_refusals_leave_the_state_as_it_was() -> None:
    cases = [
        (MinMaxConfig(), None, torch.float32, NoCalibrationDataError, "site:linear:0"),
        (MinMaxConfig(), torch.randn(9, K), torch.float64, UnsupportedError, "site.0:linear:0.*float64"),
        (MinMaxConfig(activation="group", activation_group_size=5), torch.randn(9, K), torch.float32, ConfigError,
         "site:linear:0.*activation_group_size"),
    ]
    for recipe, x, dtype, kind, match in cases:
        made, weights = state(recipe, x)
        with pytest.raises(kind, match=match):
            solve_site(made, [w.to(dtype) for w in weights])
        assert made.calibrating
        assert made.parameters is None


def test_outlier_ratio() -> None:
    low, high = torch.tensor([-1.0, -30.0, 0.0, -3.0]), torch.tensor([2.0, 1.0, 0.0, 1.0])
    assert outlier_ratio(low, high) == 10
    assert outlier_ratio(torch.zeros(3), torch.zeros(3)) is None


def test_a_rotated_site() -> None:
    """Its range is that of the rotated rows, all that were seen of them."""
    x = torch.randn(2000, K)
    made, weights = state(HadamardConfig(activation="static", shift_scale="osplus"), x[:1000], (24, K), (8, K))
    assert made.observers() == [made.channels, made.turned, made.rows]
    made.output_rotations = {1: Hadamard(8, 1)}
    made.observe(x[1000:], None)
    solve_site(made, weights)
    found = made.parameters
    turned = found.transform(K).activation(x)
    torch.testing.assert_close(torch.stack(turned.aminmax()), torch.stack([found.act_low, found.act_high]))
    assert made.record.transforms[0] == "hadamard 32 (seed 0)"
    assert made.record.placement == "online"
    plain, rotated = (made.quantized(w) for w in weights)
    assert (plain.output_hadamard, rotated.output_hadamard) == (None, Hadamard(8, 1))
    for weight, stored in zip(weights, (plain, rotated), strict=True):
        exact = x @ weight.detach().T
        assert float((matmul_rows(x, stored, None) - exact).norm() / exact.norm()) < 0.03


def test_a_rotation_is_settled_before_anything_is_seen() -> None:
    made, _ = state(HadamardConfig(), torch.randn(9, K))
    made.calls = 1
    with pytest.raises(AssertionError):
        made.rotate(None, None, K)


def test_why_a_site_is_not_rotated() -> None:
    made, weights = state(HadamardConfig(), torch.randn(99, 30), (24, 30))
    solve_site(made, weights)
    assert made.record.transforms == []
    assert made.record.reason == "not rotated: rows of 30 split into no Hadamard block of 16 or more"


@pytest.mark.parametrize(("quantizer", "text"), [
    (AffineQuantizer(), "u8 affine per tensor, static"),
    (AffineQuantizer(clip_ratio=0.9), "u8 affine per tensor, static, clipped to 0.9 of the range"),
    (AffineQuantizer(4, True, "group", 16, True), "u4 symmetric per group of 16, dynamic"),
    (AffineQuantizer(8, True, "channel", signed=True), "s8 symmetric per channel"),
])
def test_words(quantizer: AffineQuantizer, text: str) -> None:
    assert describe(quantizer) == text


def test_bytes() -> None:
    def of(kind: str, size: int | None = None, symmetric: bool = True) -> int:
        return stored_bytes(torch.Size((3, 8, 16)), AffineQuantizer(8, symmetric, kind, size, signed=True))

    assert [of("tensor"), of("channel"), of("group", 4), of("channel", None, False)] == [
        384 + 4, 384 + 4 * 24, 384 + 4 * 96, 384 + 8 * 24]
