"""Outlier Suppression+: what it gains, what it refuses, what its grids are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.errors import ConfigError
from torchqx.observers.solvers import (
    MinMaxSolver,
    Objective,
    OutlierSuppressionPlusSolver,
    Sample,
    SmoothQuantSolver,
)
from torchqx.observers.solvers import outlier_suppression_plus as module
from torchqx.quantizers import AffineQuantizer

TOKEN = AffineQuantizer(granularity="token", dynamic=True)


@pytest.fixture
def evaluations(monkeypatch) -> list:
    """Filled with the transform of every evaluation of a loss."""
    seen, call = [], Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda self, t, bounds: seen.append(t) or call(self, t, bounds))
    return seen


@pytest.mark.parametrize("activation", [AffineQuantizer(), AffineQuantizer(bits=6), TOKEN])
def test_planted_asymmetric_outliers(problem_of, outlying, activation):
    problem = problem_of(outlying, (40, 33), activation=activation)
    ours, smooth, plain = (s.solve(problem) for s in (
        OutlierSuppressionPlusSolver(), SmoothQuantSolver(None), MinMaxSolver()))
    assert ours.error < 0.5 * smooth.error
    assert ours.error < 0.1 * plain.error
    clean = outlying - (outlying.amin(0) + outlying.amax(0)) / 2
    bound = MinMaxSolver().solve(problem_of(clean / clean.abs().amax(0), (40, 33), activation=activation)).error
    assert ours.loss**0.5 < 2 * bound


def test_the_formulas(problem_of, outlying):
    solution = OutlierSuppressionPlusSolver(shift=True).solve(problem_of(outlying))
    low, high = outlying.amin(0), outlying.amax(0)
    torch.testing.assert_close(solution.shift, (low + high) / 2)
    torch.testing.assert_close(solution.scale, ((high - low) / 2 / solution.threshold).clamp(min=1))
    torch.testing.assert_close(solution.act_high, torch.tensor(solution.threshold), rtol=1e-4, atol=0)
    torch.testing.assert_close(solution.act_low, -solution.act_high, rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", [4, 6])
def test_a_shift_that_hurts_is_refused(problem_of, bits):
    # After GELU most values lie near the low end: the middle of the range is where nothing is.
    x = F.gelu(torch.randn(300, 100, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    problem = problem_of(x, activation=AffineQuantizer(bits=bits),
                         weight=AffineQuantizer(bits=bits, granularity="channel", symmetric=True, signed=True))
    auto, forced, without = (OutlierSuppressionPlusSolver(shift=s).solve(problem) for s in ("auto", True, False))
    assert auto.shift is None
    assert auto.loss == without.loss
    assert forced.shift is not None
    assert forced.loss > 1.2 * auto.loss


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 20), rows=st.integers(1, 30), seed=st.integers(0, 1000), spread=st.floats(0, 6),
    size=st.sampled_from([1e-20, 1e-3, 1.0, 1e4]), bits=st.sampled_from([4, 8]), dynamic=st.booleans(),
)
def test_auto_is_never_worse_than_min_max(problem_of, k, rows, seed, spread, size, bits, dynamic):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=generator) * (torch.randn(k, generator=generator) * spread).exp() * size
    activation = AffineQuantizer(bits=bits, dynamic=dynamic, granularity="token" if dynamic else "tensor")
    problem = problem_of(x, (7,), seed=seed, activation=activation)
    assert OutlierSuppressionPlusSolver(steps=6).solve(problem).loss <= MinMaxSolver().solve(problem).loss


@pytest.mark.parametrize("size", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("activation", [AffineQuantizer(), AffineQuantizer(bits=4), TOKEN])
def test_the_default_grid_is_as_good_as_the_released_one(problem_of, evaluations, activation, size):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 63, generator=generator) * (torch.randn(63, generator=generator) * 1.5).exp() * size
    problem = problem_of(x, (40, 33), activation=activation)
    default = OutlierSuppressionPlusSolver().solve(problem)
    assert len(evaluations) <= 26
    released = OutlierSuppressionPlusSolver(steps=None).solve(problem)
    assert len(evaluations) >= 200
    assert default.loss <= 1.03 * released.loss


@pytest.mark.parametrize("activation", [AffineQuantizer(), TOKEN])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_part_of_the_grid_finds_the_best_point_of_the_whole(problem_of, monkeypatch, evaluations, activation, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 63, generator=generator) * (torch.randn(63, generator=generator) * 1.5).exp() + torch.randn(
        63, generator=generator)
    problem = problem_of(x, (40, 33), seed=seed, activation=activation)
    part = OutlierSuppressionPlusSolver().solve(problem)
    tried = len(evaluations)
    monkeypatch.setattr(module, "PROMISING", 1000)
    whole = OutlierSuppressionPlusSolver().solve(problem)
    assert len(evaluations) - tried >= 28
    assert tried <= 26
    assert part.threshold == whole.threshold
    assert torch.equal(part.scale, whole.scale)


def test_the_released_grid(problem_of, evaluations):
    x = torch.randn(50, 7)
    x[0, 0] = 120.0
    OutlierSuppressionPlusSolver(shift=False, steps=None).solve(problem_of(x))
    tried = [120.0 if t.scale is None else 120.0 / float(t.scale[0]) for t in evaluations]
    assert len(tried) == 241
    torch.testing.assert_close(torch.tensor(tried), torch.linspace(120, 1, 241))
    evaluations.clear()
    OutlierSuppressionPlusSolver(shift=False, steps=None, smallest=0.1).solve(problem_of(x / 120))
    assert len(evaluations) == 101
    assert max(float(t.scale.max()) for t in evaluations[1:]) == pytest.approx(10)


def attention(q_k_v):
    q, k, v = (y.unflatten(-1, (2, -1)).transpose(-3, -2) for y in q_k_v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2)


@pytest.mark.parametrize("region", [attention, lambda y: F.silu(y[0]) * y[1] * y[2]])
def test_losses_of_regions(problem_of, outlying, region):
    x = outlying.view(3, 100, 63).clone()
    x[:, :, [3, 11, 20, 40, 62]] *= 0.3
    mask = torch.ones(3, 100, dtype=torch.bool)
    mask[0, 60:] = False
    linear = problem_of(x, (16, 16, 16), activation=AffineQuantizer(bits=6))
    inside = problem_of(x, (16, 16, 16), activation=AffineQuantizer(bits=6), samples=[Sample(x, region, mask)])
    ours, plain = OutlierSuppressionPlusSolver().solve(inside), MinMaxSolver().solve(inside)
    assert ours.loss < 0.3 * plain.loss
    other = OutlierSuppressionPlusSolver().solve(linear)
    bounds = other.act_low, other.act_high
    assert ours.loss <= Objective(inside)(other.transform, bounds) * 1.03


@pytest.mark.parametrize("solver", [OutlierSuppressionPlusSolver(), OutlierSuppressionPlusSolver(steps=None),
                                    OutlierSuppressionPlusSolver(shift=True)])
@pytest.mark.parametrize("activation", [AffineQuantizer(), TOKEN])
def test_degenerate_inputs(problem_of, solver, activation):
    dead = torch.randn(9, 5)
    dead[:, 2] = 0
    constant = torch.randn(9, 5)
    constant[:, 3] = 41.5
    for x in (torch.zeros(4, 5), torch.full((4, 5), 3.0), torch.randn(6, 1), torch.randn(1, 5), torch.ones(1, 1), dead,
              constant, torch.randn(9, 5) * 1e-30):
        solution = solver.solve(problem_of(x, (3,), activation=activation))
        assert solution.loss < 1e-3
        assert solution.error < 0.2  # a value near zero may lose its own size to a forced shift
        for tensor in (solution.shift, solution.scale):
            assert tensor is None or bool(tensor.isfinite().all())


def test_thresholds_that_overflow_are_passed_over(problem_of, outlying):
    weights = [torch.full((5, 63), 1e37)]
    solution = OutlierSuppressionPlusSolver(shift=False).solve(
        problem_of(outlying * 1e-30, weights=weights, samples=[Sample(outlying * 1e-30)]))
    assert solution.scale is None or bool((weights[0] * solution.scale).isfinite().all())


def test_settings_outside_their_range():
    for bad in ({"shift": "maybe"}, {"steps": 1}, {"smallest": 0.0}):
        with pytest.raises(ConfigError):
            OutlierSuppressionPlusSolver(**bad)
