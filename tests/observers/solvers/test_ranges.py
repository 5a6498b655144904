"""Solvers that only choose a range, and SmoothQuant."""

import pytest
import torch

from torchqx.errors import ConfigError, NonFiniteError
from torchqx.observers.solvers import HistogramSolver, MinMaxSolver, PercentileSolver, SmoothQuantSolver
from torchqx.quantizers import AffineQuantizer

TOKEN = AffineQuantizer(granularity="token", dynamic=True)


def test_min_max_is_the_exact_range(problem_of, outlying):
    solution = MinMaxSolver().solve(problem_of(outlying))
    assert (solution.act_low, solution.act_high) == (outlying.min(), outlying.max())
    assert solution.shift is solution.scale is solution.threshold is None
    assert MinMaxSolver().solve(problem_of(outlying, activation=TOKEN)).act_low is None


@pytest.mark.parametrize("solver", [PercentileSolver(99.0), HistogramSolver()])
def test_clipping_pays_at_four_bits(problem_of, solver):
    torch.manual_seed(0)
    problem = problem_of(torch.distributions.StudentT(3.0).sample((400, 63)), activation=AffineQuantizer(bits=4))
    clipped, exact = solver.solve(problem), MinMaxSolver().solve(problem)
    assert clipped.loss < 0.5 * exact.loss
    assert exact.act_low < clipped.act_low < clipped.act_high < exact.act_high


def test_a_dynamic_range_is_not_clipped(problem_of, outlying):
    with pytest.raises(ConfigError, match="dynamic"):
        HistogramSolver().solve(problem_of(outlying, activation=TOKEN))


def test_smoothquant_is_its_formula(problem_of, outlying):
    problem = problem_of(outlying, (40, 33))
    weight = torch.cat(problem.weights).abs().amax(0)
    expected = outlying.abs().amax(0) ** 0.7 / weight**0.3
    torch.testing.assert_close(SmoothQuantSolver(0.7).solve(problem).scale, expected)


def test_smoothquant_helps_and_searching_helps_more(problem_of, outlying):
    for activation in (AffineQuantizer(), TOKEN):
        problem = problem_of(outlying, (40, 33), activation=activation)
        plain, half, searched = (s.solve(problem).loss for s in (
            MinMaxSolver(), SmoothQuantSolver(), SmoothQuantSolver(None)))
        assert searched <= half < 0.3 * plain


def test_smoothquant_leaves_dead_channels(problem_of):
    x = torch.randn(20, 7)
    x[:, 2] = 0
    weight = torch.randn(5, 7)
    weight[:, 4] = 0
    solution = SmoothQuantSolver().solve(problem_of(x, weights=[weight]))
    assert solution.scale[2] == solution.scale[4] == 1
    assert torch.isfinite(solution.scale).all()


def test_an_overflowing_transform_is_an_error(problem_of):
    x = torch.randn(20, 7)
    problem = problem_of(x * 1e10, weights=[torch.full((5, 7), 3e28)])
    with pytest.raises(NonFiniteError, match=r"layer\.0\.fc1"):
        SmoothQuantSolver(1.0).solve(problem)


def test_alpha_outside_its_range():
    with pytest.raises(ConfigError, match="alpha"):
        SmoothQuantSolver(1.5)
