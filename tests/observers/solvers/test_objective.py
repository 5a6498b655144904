"""The loss and the error against plain computations of their definitions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torchqx.errors import NoCalibrationDataError, NonFiniteError, ShapeError
from torchqx.observers.solvers import (
    LinearSolution,
    MinMaxSolver,
    Objective,
    OutlierSuppressionPlusSolver,
    Sample,
    coded,
    measure,
    objective,
)
from torchqx.quantizers import AffineQuantizer
from torchqx.transforms import ShiftScale

STATIC = AffineQuantizer()
TOKEN = AffineQuantizer(granularity="token", dynamic=True)
GROUP = AffineQuantizer(granularity="group", group_size=9, dynamic=True)
CHANNEL = AffineQuantizer(granularity="channel", symmetric=True, signed=True)
ACTIVATIONS = [STATIC, TOKEN, GROUP, AffineQuantizer(dynamic=True), AffineQuantizer(bits=4, symmetric=True)]
WEIGHTS = [CHANNEL, AffineQuantizer(symmetric=True, signed=True), AffineQuantizer(granularity="channel", signed=True),
           AffineQuantizer(bits=4, granularity="group", group_size=9, signed=True)]


def some_transform(k: int) -> ShiftScale:
    return ShiftScale(torch.randn(k), torch.rand(k) + 0.5)


def outputs(problem, x, transform, bounds):
    """Y and Y_q of every member in float64, by the definition."""
    xq = problem.activation.fake_quantize(transform.activation(x), *(bounds or (None, None))).double()
    exact, quantized = [], []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        wq = problem.weight.fake_quantize(transform.weight(weight)).double()
        bias = torch.zeros(len(weight)) if bias is None else bias
        exact.append(F.linear(x.double(), weight.double(), bias.double()))
        quantized.append(F.linear(xq, wq, bias.double() + weight.double() @ transform.shift.double()))
    return exact, quantized


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_and_error_are_what_they_say(problem_of, outlying, activation, weight):
    torch.manual_seed(0)
    problem = problem_of(outlying, (40, 33), activation=activation, weight=weight)
    transform = some_transform(63)
    transformed = transform.activation(outlying)
    bounds = (transformed.min(), transformed.max()) if problem.static else None
    exact, quantized = (torch.cat(y, -1) for y in outputs(problem, outlying, transform, bounds))
    noise, power = (quantized - exact).square(), exact.square()
    assert Objective(problem)(transform, bounds) == pytest.approx(float(noise.sum() / power.sum()), rel=1e-3)
    solution = LinearSolution(transform.shift, transform.scale, *(bounds or (None, None)), 0.0, 0.0)
    per_token = float((noise.sum(-1) / power.sum(-1)).mean().sqrt())
    assert measure(problem, solution) == pytest.approx(per_token, rel=1e-3)


@pytest.mark.parametrize("activation", [STATIC, TOKEN, AffineQuantizer(dynamic=True), AffineQuantizer(symmetric=True)])
@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 63, 1), (100, 63, 40), (63, 1000, 17)])
def test_integers_give_what_floats_give(monkeypatch, activation, shape):
    if not coded.exact_integer_matmul():
        pytest.skip("no exact integer matmul on this machine")
    rows, k, n = shape
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, rows, k) * 5 + 1, torch.randn(n, k), torch.randn(n)
    bounds = (x.min() / 2, x.max() / 2) if activation is STATIC else None
    integer = coded.CodedLinear(activation, CHANNEL, weight)
    monkeypatch.setattr(coded, "exact_integer_matmul", lambda: False)
    floating = coded.CodedLinear(activation, CHANNEL, weight)
    assert (integer.integer, floating.integer) == (True, False)
    torch.testing.assert_close(integer(x, bounds, bias), floating(x, bounds, bias), rtol=1e-4, atol=1e-4 * k**0.5)


def attention(q_k_v):
    q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in q_k_v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def gated(gate_up):
    return F.silu(gate_up[0]) * gate_up[1]


@pytest.mark.parametrize(("region", "members"), [(attention, 3), (gated, 2)])
def test_regions_compare_their_own_outputs(problem_of, region, members):
    torch.manual_seed(0)
    x = torch.randn(3, 11, 63)
    mask = torch.rand(3, 11) > 0.3
    problem = problem_of(x, (16,) * members, samples=[Sample(x, region, mask)])
    transform = some_transform(63)
    bounds = transform.activation(x).min(), transform.activation(x).max()
    exact, quantized = (region(y)[mask] for y in outputs(problem, x, transform, bounds))
    expected = float((quantized - exact).square().sum() / exact.square().sum())
    assert Objective(problem)(transform, bounds) == pytest.approx(expected, rel=1e-3)


def test_a_region_and_its_mask_must_fit(problem_of):
    x = torch.randn(3, 11, 63)
    with pytest.raises(ShapeError, match="compared tensor"):
        Objective(problem_of(x, (16, 16), samples=[Sample(x, gated, torch.ones(3, 12, dtype=torch.bool))]))


def test_a_region_that_returns_its_input_keeps_the_reference(problem_of):
    x = torch.randn(3, 11, 63)
    loss = Objective(problem_of(x, samples=[Sample(x, lambda y: y[0])]))
    assert 0 < loss(ShiftScale(), (x.min(), x.max())) == loss(ShiftScale(), (x.min(), x.max()))


@pytest.mark.parametrize("activation", [STATIC, TOKEN])
def test_masks_equal_dropped_rows(problem_of, outlying, activation):
    x = outlying.view(3, 100, 63).clone()
    mask = torch.rand(3, 100, generator=torch.Generator().manual_seed(0)) > 0.5
    dropped = problem_of(x[mask], activation=activation)
    x[~mask] = torch.nan
    ranges = {"channel_low": dropped.channel_low, "channel_high": dropped.channel_high, "activation": activation}
    masked = problem_of(x, samples=[Sample(x, mask=mask)], **ranges)
    solutions = [MinMaxSolver().solve(problem) for problem in (dropped, masked)]
    assert solutions[0].loss == solutions[1].loss
    assert solutions[0].error == solutions[1].error
    row_masked = problem_of(x, samples=[Sample(x, row_mask=mask)], **ranges)
    assert measure(row_masked, solutions[0]) == solutions[0].error


def test_massive_tokens_do_not_hide_the_error_of_the_others(problem_of):
    x = torch.randn(200, 63, generator=torch.Generator().manual_seed(0))
    x[0] *= 1000
    solution = MinMaxSolver().solve(problem_of(x))
    assert solution.loss**0.5 < 0.03
    assert solution.error > 0.5
    assert measure(problem_of(x, activation=TOKEN), solution) < 0.02
    assert measure(problem_of(x), replace(solution, act_low=None, act_high=None)) == solution.error


@pytest.mark.parametrize("activation", [STATIC, TOKEN, AffineQuantizer(dynamic=True)])
def test_memory_is_bounded_by_taking_parts(monkeypatch, problem_of, outlying, activation):
    problem = problem_of(outlying, (40, 33), activation=activation)
    whole = MinMaxSolver().solve(problem)
    monkeypatch.setattr(objective, "LARGEST_OUTPUT", 73 * 60)
    parts = MinMaxSolver().solve(problem)
    assert parts.error == pytest.approx(whole.error, rel=1e-5)
    assert parts.loss == pytest.approx(whole.loss, rel=0.1)
    assert sum(len(y) for target in Objective(problem).targets for y in target) == 60


def test_few_features_stand_for_many(monkeypatch, problem_of, outlying):
    problem = problem_of(outlying, (900, 700))
    monkeypatch.setattr(objective, "SEARCHED_FEATURES", 2000)
    whole = OutlierSuppressionPlusSolver().solve(problem)
    monkeypatch.setattr(objective, "SEARCHED_FEATURES", 200)
    few = OutlierSuppressionPlusSolver().solve(problem)
    assert few.loss != whole.loss
    assert few.error < 1.02 * whole.error


def test_no_rows_and_bad_rows_are_errors(problem_of):
    x = torch.randn(4, 7)
    nothing = torch.zeros(4, dtype=torch.bool)
    for samples in ([], [Sample(x[:0])], [Sample(x, mask=nothing)]):
        problem = problem_of(x, samples=samples)
        with pytest.raises(NoCalibrationDataError, match=r"layer\.0\.fc1"):
            MinMaxSolver().solve(problem)
        with pytest.raises(NoCalibrationDataError, match=r"layer\.0\.fc1"):
            measure(problem, LinearSolution(None, None, None, None, 0.0, 0.0))
    with pytest.raises(NonFiniteError, match=r"layer\.0\.fc1"):
        MinMaxSolver().solve(problem_of(x, samples=[Sample(torch.full((4, 7), torch.nan))]))


def test_surroundings_do_not_matter(problem_of, outlying):
    problem = problem_of(outlying, (40, 33))
    expected = MinMaxSolver().solve(problem)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        inside = MinMaxSolver().solve(problem)
        assert measure(problem, inside) == expected.error
    assert (inside.loss, inside.error) == (expected.loss, expected.error)


def test_nothing_in_nothing_lost(problem_of):
    solution = MinMaxSolver().solve(problem_of(torch.zeros(5, 7), weights=[torch.zeros(4, 7)]))
    assert (solution.loss, solution.error) == (0.0, 0.0)
