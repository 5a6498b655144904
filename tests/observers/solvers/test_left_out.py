"""What a static range leaves of rows that did not set it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torchqx.observers.solvers import LinearProblem, OutlierSuppressionPlusSolver, Sample, measure, others_bounds
from torchqx.quantizers import AffineQuantizer

INF = torch.inf
WEIGHT = AffineQuantizer(8, True, "channel", signed=True)


def bounds(rows: list[list[float]], symmetric: bool = False) -> tuple[list[float], list[float]]:
    x = torch.tensor(rows)
    low, high = others_bounds(x, x.amin(0), x.amax(0), symmetric)
    return low.tolist(), high.tolist()


def test_one_channel_sets_the_range() -> None:
    """Without it the range would be that of the other channel, or its own runner-up if that is wider."""
    assert bounds([[9.0, 4.0], [2.0, 5.0], [-3.0, 1.0]]) == ([0.0, -INF], [5.0, INF])
    assert bounds([[9.0, 4.0], [7.0, 5.0], [-3.0, -1.0]])[1] == [7.0, INF]


def test_channels_scaled_to_the_end_are_each_their_own() -> None:
    assert bounds([[9.0, 4.0], [2.0, 9.0], [0.0, 0.0]]) == ([0.0, 0.0], [2.0, 4.0])


def test_a_symmetric_range_is_that_of_magnitudes() -> None:
    assert bounds([[-9.0, 1.0], [2.0, 5.0], [6.0, -1.0]], symmetric=True) == ([-6.0, -INF], [6.0, INF])


def test_a_sample_without_the_extremes_keeps_its_values() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    low, high = others_bounds(x, torch.tensor([-9.0, -9.0]), torch.tensor([9.0, 9.0]), symmetric=False)
    assert bool(low.isneginf().all())
    assert bool(high.isposinf().all())


def test_of_a_single_row_nothing_is_left() -> None:
    assert bounds([[3.0, -4.0]]) == ([0.0, 0.0], [0.0, 0.0])


def test_equal_rows_vouch_for_each_other() -> None:
    x = torch.tensor([[3.0, -4.0]]).expand(2, 2)
    low, high = others_bounds(x, x[0], x[0], symmetric=False)
    assert torch.equal(x.clamp(low, high), x)


def heavy(rows: int, seed: int) -> Tensor:
    """Gaussian rows, each a log-normal multiple, in channels of unlike magnitude."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(rows, 1, generator=generator).exp()
    return torch.randn(rows, 100, generator=generator) * size * torch.logspace(0, 1.5, 100)


@pytest.mark.parametrize("rows", [8, 63, 500])
def test_the_error_is_that_of_fresh_rows(rows: int) -> None:
    """Within a factor of two of what 4000 other rows find; the rows' own error is far below it."""
    weight = torch.randn(40, 100, generator=torch.Generator().manual_seed(1))
    left_out, own, fresh = [], [], []
    for seed in range(6):
        x = heavy(rows, seed)
        problem = LinearProblem("site", x.amin(0), x.amax(0), [weight], [None], [Sample(x)], AffineQuantizer(), WEIGHT)
        solution = OutlierSuppressionPlusSolver(shift=False, steps=5).solve(problem)
        seen = (solution.transform.activation(t) for t in (x, x.amin(0), x.amax(0)))
        own.append(solution.error)
        left_out.append(measure(problem, solution, others_bounds(*seen, symmetric=False)))
        fresh.append(measure(replace(problem, samples=[Sample(heavy(4000, 100 + seed))]), solution))
    truth, claimed, naive = (float(torch.tensor(e).square().mean().sqrt()) for e in (fresh, left_out, own))
    assert truth / 2 < claimed < 2 * truth
    assert naive < claimed
